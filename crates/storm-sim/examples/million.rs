//! One million devices on ten instances, or as many as are named, as dps-proxy serves them:
//! `cargo run --release -p storm-sim --example million [DEVICES INSTANCES]`.
#![allow(clippy::disallowed_methods, reason = "it tells how long it took")]

use std::time::{Duration, Instant};

use proxy_core::ids::TenantName;
use storm_sim::{BootCurve, DpsModel, Fleet, Manner, Scenario, Tenant, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let devices = arguments.next().map_or(Ok(1_000_000), |devices| devices.parse())?;
    let instances = arguments.next().map_or(Ok(10), |instances| instances.parse())?;
    let tenant = Tenant {
        name: TenantName::parse("fleet")?,
        devices,
        boot: BootCurve::Within(Duration::from_secs(60)),
        begins_after: Duration::ZERO,
        dedicated_instances: 0,
        weight: 1,
    };
    let dps = DpsModel {
        quota_per_minute: 1_000,
        enforced_per_minute: 1_000,
        latency: Duration::from_millis(300),
        assigning: Duration::from_secs(3),
    };
    let fleet = Fleet::new(vec![tenant])?;
    let began = Instant::now();
    let (quotas, manner) = (Vec::new(), Manner::Appointments);
    let report = run(&Scenario { fleet, instances, dps, quotas, manner, seed: 1 })?;
    println!("simulated in {:.1} s", began.elapsed().as_secs_f64());
    println!("requests per device {:.4}", report.requests_per_device());
    println!("finish {:.1} s, {:.4} of the ideal", report.finished_after.as_secs_f64(), report.finish_to_ideal());
    println!("quota used while there was a line {:.2} %", report.quota_used * 100.0);
    println!(
        "most in any 60 s {}, in a minute of the clock {}",
        report.most_in_any_minute, report.most_in_clock_minute
    );
    println!("429s {}, registrations {}", report.throttled, report.registrations);
    println!("knocks per second at most {}", report.knocks_per_second_max);
    println!("wait p50 {:?}, p99 {:?}, max {:?}", report.wait_p50, report.wait_p99, report.wait_max);
    Ok(())
}
