//! What the engine proves at a size that a debug build simulates in seconds, and what it must be able to disprove.

use std::time::Duration;

use proxy_core::ids::TenantName;
use storm_sim::{
    BootCurve, DpsModel, Fleet, Manner, OutOfReach, Report, Scenario, Tenant, Trial, Watcher, compare,
    instances_needed, run,
};

const MINUTE: Duration = Duration::from_secs(60);

fn tenant(name: &str, devices: u32) -> Tenant {
    Tenant {
        name: TenantName::parse(name).expect("a name"),
        devices,
        boot: BootCurve::Within(MINUTE),
        begins_after: Duration::ZERO,
        dedicated_instances: 0,
        weight: 1,
    }
}

fn scenario(tenants: Vec<Tenant>, instances: u16) -> Scenario {
    let dps = DpsModel {
        quota_per_minute: 1_000,
        enforced_per_minute: 1_000,
        latency: Duration::from_millis(300),
        assigning: Duration::from_secs(3),
    };
    Scenario {
        fleet: Fleet::new(tenants).expect("a sound fleet"),
        instances,
        dps,
        quotas: Vec::new(),
        manner: Manner::Appointments,
        seed: 1,
    }
}

fn storm(tenants: Vec<Tenant>, instances: u16) -> Report {
    run(&scenario(tenants, instances)).expect("room for all")
}

#[test]
fn obedient_devices_ask_twice() {
    let report = storm(vec![tenant("fleet", 40_000)], 2);
    assert!(report.requests_per_device() <= 2.05, "{}", report.requests_per_device());
}

fn sized(sizes: &[u32]) -> Vec<Tenant> {
    let name = |number: usize| char::from(b'a' + u8::try_from(number).expect("few")).to_string();
    sizes.iter().enumerate().map(|(number, &devices)| tenant(&name(number), devices)).collect()
}

/// Devices of several tenants in one line, which take their shares of it from each other: whoever was told a moment is not put back
/// beyond it.
#[test]
fn devices_of_several_tenants_ask_twice_too() {
    let weighted = |sizes: &[u32], weight| {
        let mut tenants = sized(sizes);
        tenants[1].weight = weight;
        tenants
    };
    let late = |minutes| {
        let mut tenants = sized(&[20_000, 200]);
        (tenants[1].begins_after, tenants[1].boot) = (minutes * MINUTE, BootCurve::Within(MINUTE / 6));
        tenants
    };
    for (what, tenants, longest) in [
        ("even", sized(&[10_000, 10_000]), 1.04),
        ("95 to 5", sized(&[19_000, 1_000]), 1.04),
        ("75 to 25", sized(&[15_000, 5_000]), 1.06),
        ("three", sized(&[10_000, 6_000, 4_000]), 1.09),
        ("weight 3", weighted(&[10_000, 10_000], 3), 1.09),
        ("95 to 5, weight 3", weighted(&[19_000, 1_000], 3), 1.04),
        ("latecomers after 1 min", late(1), 1.03),
        ("latecomers after 5 min", late(5), 1.03),
        ("latecomers after 10 min", late(10), 1.03),
    ] {
        let small_devices = tenants[1].devices;
        let report = storm(tenants, 1);
        assert!(report.requests_per_device() <= 2.05, "{what}: {}", report.requests_per_device());
        assert!(report.finish_to_ideal() <= longest, "{what}: {}", report.finish_to_ideal());
        assert!(report.quota_used >= 0.99, "{what}: {}", report.quota_used);
        assert_eq!((report.registrations, report.throttled), (report.devices, 0), "{what}");
        if what == "95 to 5" {
            // Half of 1,000 a minute is its share, whatever the other one has been told.
            let fair = 2 * MINUTE * small_devices / 1000;
            assert!(report.tenants[1].finished_after < fair + MINUTE / 2, "{:?}", report.tenants);
        }
    }
}

/// Nobody knows how many of another tenant are yet to come; what was told is kept all the same, and nothing of the quota is lost.
#[test]
fn tenants_may_come_back_as_slowly_and_as_late_as_they_like() {
    let booting = |sizes: &[u32], boot| {
        let mut tenants = sized(sizes);
        tenants.iter_mut().for_each(|tenant| tenant.boot = boot);
        tenants
    };
    let late = |devices, after| {
        let mut tenants = sized(&[15_000, devices]);
        tenants[1].begins_after = after;
        tenants
    };
    let mut in_turn = sized(&[2_000; 10]);
    (0..).zip(&mut in_turn).for_each(|(number, tenant)| tenant.begins_after = number * MINUTE);
    for (what, tenants, longest) in [
        ("within 10 s", booting(&[15_000, 5_000], BootCurve::Within(MINUTE / 6)), 1.55),
        ("within 5 min", booting(&[15_000, 5_000], BootCurve::Within(5 * MINUTE)), 1.06),
        ("within 5 min, ten", booting(&[2_000; 10], BootCurve::Within(5 * MINUTE)), 1.12),
        ("a ramp of 10 min", booting(&[19_000, 1_000], BootCurve::Ramp(10 * MINUTE)), 1.04),
        ("a tail of 5 min", booting(&[15_000, 5_000], BootCurve::Tail(5 * MINUTE)), 1.01),
        ("5,000 after 1 min", late(5_000, MINUTE), 1.03),
        ("5,000 after 10 min", late(5_000, 10 * MINUTE), 1.03),
        ("ten, a minute apart", in_turn, 1.03),
    ] {
        let report = storm(tenants, 1);
        assert!(report.requests_per_device() <= 2.05, "{what}: {}", report.requests_per_device());
        assert!(report.finish_to_ideal() <= longest, "{what}: {}", report.finish_to_ideal());
        assert_eq!((report.registrations, report.throttled), (report.devices, 0), "{what}");
    }
}

#[test]
fn the_quota_is_kept_and_used_to_the_end() {
    // A line of an hour: in a short one the spread of the last device's return, up to 5 s, weighs more than one part in a hundred.
    let report = storm(vec![tenant("fleet", 60_000)], 1);
    assert_eq!((report.devices, report.registrations, report.throttled), (60_000, 60_000, 0));
    assert!(report.most_in_any_minute <= 1_000, "{}", report.most_in_any_minute);
    assert!(report.most_in_clock_minute <= 1_000, "{}", report.most_in_clock_minute);
    assert!(report.finish_to_ideal() <= 1.01, "{}", report.finish_to_ideal());
    assert!(report.quota_used >= 0.99, "{}", report.quota_used);
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_does_not() {
    let once = |seed| {
        let scenario = Scenario { seed, ..scenario(vec![tenant("a", 3_000), tenant("b", 1_000)], 2) };
        format!("{:?}", run(&scenario).unwrap())
    };
    assert_eq!(once(7), once(7));
    assert_ne!(once(7), once(8));
}

#[test]
fn the_judge_convicts_a_proxy_whose_quota_is_higher_than_dps_enforces() {
    let mut scenario = scenario(vec![tenant("fleet", 5_000)], 1);
    scenario.dps.enforced_per_minute = 800;
    let report = run(&scenario).unwrap();
    assert!(report.throttled > 0);
    assert!(report.most_in_any_minute > 800, "{}", report.most_in_any_minute);
    assert_eq!(report.devices, 5_000, "and still everybody is told a hub");
}

#[test]
fn the_alternatives_are_worse_in_the_way_that_is_theirs() {
    let comparison = compare(&scenario(vec![tenant("fleet", 16_000)], 2)).unwrap();
    assert_eq!((comparison.devices, comparison.divided_by), (8_000, 1));
    let reports: Vec<&Report> = comparison.outcomes.iter().map(|(_, report)| report).collect();
    let [constant, exponential, full_jitter, uniform, shared, appointments] = reports[..] else { panic!("six") };
    for (contender, report) in &comparison.outcomes {
        assert_eq!(report.devices, 8_000, "{}", contender.name);
    }
    assert_eq!(appointments.throttled, 0);
    for talkative in [constant, exponential, full_jitter, shared] {
        assert!(talkative.requests_per_device() > 2.0 * appointments.requests_per_device());
    }
    assert!(constant.requests_per_device() > full_jitter.requests_per_device());
    for refused in [constant, exponential, full_jitter, uniform] {
        assert!(refused.throttled > 0);
    }
    // Few requests, but the pipe runs dry.
    assert!(uniform.quota_used < appointments.quota_used, "{}", uniform.quota_used);
    assert!(exponential.finish_to_ideal() > 1.2, "{}", exponential.finish_to_ideal());
}

#[test]
fn skew_and_a_slow_boot_change_the_answer() {
    let even = storm(vec![tenant("a", 6_000), tenant("b", 6_000)], 2);
    let own = |mut tenant: Tenant| {
        tenant.dedicated_instances = 1;
        tenant
    };
    let skewed = storm(vec![own(tenant("a", 11_000)), own(tenant("b", 1_000))], 2);
    assert!(skewed.finished_after > even.finished_after.mul_f64(1.5), "{:?}", skewed.finished_after);
    assert!(skewed.tenants[1].finished_after < even.tenants[1].finished_after);
    let mut late = tenant("a", 6_000);
    late.boot = BootCurve::Ramp(20 * MINUTE);
    assert!(storm(vec![late], 2).finished_after >= 19 * MINUTE);
}

#[test]
fn a_heavier_tenant_is_done_earlier_on_shared_instances() {
    let mut heavy = tenant("heavy", 3_000);
    heavy.weight = 3;
    let report = storm(vec![heavy, tenant("light", 3_000)], 1);
    assert!(report.tenants[0].finished_after < report.tenants[1].finished_after.mul_f64(0.8), "{:?}", report.tenants);
}

#[test]
fn an_instance_of_a_smaller_quota_is_done_later_and_keeps_it() {
    let mixed = Scenario { quotas: vec![400], ..scenario(vec![tenant("fleet", 6_000)], 2) };
    let report = run(&mixed).unwrap();
    assert_eq!((report.registrations, report.throttled), (6_000, 0));
    let [slow, fast] = report.lines_finished_after[..] else { panic!("two") };
    // Each has half of the devices.
    assert!(slow > fast.mul_f64(2.2), "{:?}", report.lines_finished_after);
    assert!(report.requests_per_device() <= 2.05 && report.finish_to_ideal() <= 1.05, "{report:?}");
    let needed = instances_needed(&mixed, 6 * MINUTE, &mut ()).unwrap();
    assert_eq!(needed.report.instances, 3, "with two the first one takes eight minutes");
}

/// Hears of everything.
#[derive(Default)]
struct Heard {
    trials: Vec<Trial>,
    devices_told: u64,
}

impl Watcher for Heard {
    fn told(&mut self, _instances: u16, devices: u64) {
        self.devices_told = devices;
    }

    fn tried(&mut self, trial: &Trial) {
        self.trials.push(*trial);
    }
}

#[test]
fn a_deadline_finds_its_instances_or_says_why_there_are_none() {
    let scenario = scenario(vec![tenant("fleet", 20_000)], 1);
    let mut heard = Heard::default();
    let needed = instances_needed(&scenario, 5 * MINUTE, &mut heard).unwrap();
    assert_eq!(needed.fewest_thinkable, 4);
    assert_eq!(heard.trials, needed.trials);
    assert!(heard.devices_told > 0);
    let found = needed.report.instances;
    assert!(needed.report.finished_after <= 5 * MINUTE);
    let one_fewer = run(&Scenario { instances: found - 1, ..scenario.clone() }).unwrap();
    assert!(one_fewer.finished_after > 5 * MINUTE);
    let too_soon = instances_needed(&scenario, Duration::from_secs(50), &mut ()).unwrap_err();
    assert!(matches!(too_soon, OutOfReach::LateFleet { .. }), "{too_soon}");

    let mut dedicated = tenant("big", 20_000);
    dedicated.dedicated_instances = 1;
    let scenario = Scenario { fleet: Fleet::new(vec![dedicated, tenant("small", 10)]).unwrap(), ..scenario };
    let stuck = instances_needed(&scenario, 10 * MINUTE, &mut ()).unwrap_err();
    assert!(stuck.to_string().starts_with("tenant big has 1 dedicated instances"), "{stuck}");
}
