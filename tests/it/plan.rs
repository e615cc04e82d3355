//! `plan`, as people call it: what they ask changes the answer, and what makes no sense is named.

use std::path::Path;
use std::time::Duration;

use dps_proxy_tests::binary;

/// Exit code, standard output and standard error of `plan`.
fn plan(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = binary::run(&[&["plan"], arguments].concat());
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn answer(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = plan(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    stdout
}

/// The value in the line that begins with `label`.
fn figure<'a>(answer: &'a str, label: &str) -> &'a str {
    let line = answer.lines().find_map(|line| line.trim_start().strip_prefix(label));
    line.unwrap_or_else(|| panic!("no {label} in {answer}")).trim()
}

/// `1h 40m 49s`.
fn time(text: &str) -> Duration {
    let parts = text.split_whitespace().map(|part| {
        let (number, unit) = part.split_at(part.len() - 1);
        let seconds = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            _ => panic!("{text} is no time"),
        };
        number.parse::<u64>().unwrap() * seconds
    });
    Duration::from_secs(parts.sum())
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const FEW: [&str; 4] = ["--devices", "3000", "--quota", "300"];

#[test]
fn the_same_seed_is_the_same_answer_and_a_slow_boot_or_another_fleet_is_not() {
    let ask = |more: &[&str]| answer(&[&FEW, more].concat());
    let within_a_minute = ask(&["--instances", "2"]);
    assert_eq!(within_a_minute, ask(&["--instances", "2"]));
    assert_eq!(figure(&within_a_minute, "registrations billed"), "3000");
    assert_eq!(figure(&within_a_minute, "DPS throttled (429)"), "0");
    let done = |answer: &str| time(figure(answer, "all know their hub after"));
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    // 3,000 at 600 a minute, less the two bursts, and the last one's registration.
    assert!((minutes(4)..minutes(6)).contains(&done(&within_a_minute)), "{within_a_minute}");
    let slowly = ask(&["--instances", "2", "--boot", "ramp:20m"]);
    assert!((minutes(19)..minutes(22)).contains(&done(&slowly)), "{slowly}");
    let one = ask(&["--instances", "1"]);
    assert!(done(&one) > done(&within_a_minute) * 9 / 5, "{one}");
}

#[test]
fn a_deadline_names_the_instances_it_takes_for_tenants_of_unequal_size_and_the_chart_is_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, rows: &str| {
        write(directory.path(), name, &format!("tenant,devices,boot_seconds,dedicated_instances\n{rows}"))
    };
    let chart = directory.path().join("chart.svg");
    let question = ["--deadline", "5m", "--quota", "300", "--chart", chart.to_str().unwrap()];
    let tenants = file("tenants.csv", "large,2400,,\nsmall,300,30,1\n");
    let found = answer(&[&["--tenants", &tenants], &question[..]].concat());
    // 2,400 within five minutes at 300 a minute are two instances, and one is the small tenant's.
    assert_eq!(figure(&found, "DPS instances"), "3", "{found}");
    assert!(time(figure(&found, "all know their hub after")) <= Duration::from_secs(300), "{found}");
    for (tenant, devices) in [("large", "2400"), ("small", "300")] {
        assert!(figure(&found, tenant).starts_with(devices), "{found}");
    }
    let drawn = std::fs::read_to_string(&chart).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{}", &drawn[..200]);
    for said in ["requests per device (log scale)", "429s of DPS (log scale)", "devices that wait", "2.0"] {
        assert!(drawn.contains(said), "{said} is not in the chart");
    }
    // The same fleet, but most of it at the one dedicated instance: no deadline of five minutes, and it is said why.
    let skewed = file("skewed.csv", "large,2400,,1\nsmall,300,30,\n");
    let (code, _, stderr) = plan(&[&["--tenants", &skewed], &question[..4]].concat());
    assert_eq!(code, Some(2));
    assert!(stderr.contains("tenant large has 1 dedicated"), "{stderr}");
    let done = answer(&["--tenants", &skewed, "--quota", "300", "--instances", "3"]);
    assert!(time(figure(&done, "all know their hub after")) > Duration::from_secs(7 * 60), "{done}");
}

#[test]
fn a_deadline_for_so_many_instances_is_answered_yes_or_no_with_the_reason() {
    let ask = |instances: &str| plan(&[&FEW[..], &["--instances", instances, "--deadline", "5m"]].concat());
    let (code, stdout, stderr) = ask("3");
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.starts_with("Yes: 3 instances within 5m 0s, done after "), "{stdout}");
    assert!(stdout.contains("3 × 300 per minute × 5.0 min = 4500 registrations, for 3000 devices"), "{stdout}");
    let (code, stdout, stderr) = ask("1");
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.starts_with("No: 1 instance is not done within 5m 0s, but after "), "{stdout}");
    assert!(stdout.contains("1500 registrations, for 3000 devices") && stdout.contains("it takes "), "{stdout}");
}

#[test]
fn numbers_are_understood_as_people_write_them_and_too_few_instances_are_told_how_many_it_takes() {
    let devices = |text: &str| {
        let answer = answer(&["--devices", text, "--quota", "300", "--instances", "2"]);
        figure(&answer, "registrations billed").to_owned()
    };
    for text in ["3k", "3_000", "3,000"] {
        assert_eq!(devices(text), "3000", "{text}");
    }
    let (code, _, stderr) = plan(&["--devices", "15M", "--instances", "10"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("15000000 devices on 10 instances") && stderr.contains("needs 15 instances"), "{stderr}");
}

#[test]
fn instances_have_quotas_of_their_own() {
    let mixed = answer(&["--devices", "3000", "--quota", "eu-1=600,us-1=150"]);
    assert_eq!(figure(&mixed, "DPS instances"), "2", "{mixed}");
    let row = |name: &str| {
        let cells: Vec<&str> = figure(&mixed, name).splitn(2, ' ').collect();
        (cells[0].to_owned(), time(cells[1].trim()))
    };
    let ((eu, eu_done), (us, us_done)) = (row("eu-1"), row("us-1"));
    assert_eq!((eu.as_str(), us.as_str()), ("600", "150"), "{mixed}");
    // Each has half of the devices.
    assert!(us_done > eu_done * 3, "{mixed}");
    assert_eq!(figure(&mixed, "DPS throttled (429)"), "0");
}

#[test]
fn the_alternatives_stand_beside_it_in_one_table() {
    let compared = answer(&[&FEW[..], &["--instances", "2", "--compare"]].concat());
    let row = |who: &str| {
        let line = compared.lines().find(|line| line.starts_with(&format!("| {who}")));
        let cells: Vec<&str> =
            line.unwrap_or_else(|| panic!("no {who} in {compared}")).split('|').map(str::trim).collect();
        // Requests per device and refusals.
        (cells[2].parse::<f64>().unwrap(), cells[5].parse::<u64>().unwrap())
    };
    let (ours, refused) = row("dps-proxy");
    assert!(ours <= 2.05 && refused == 0, "{compared}");
    for who in
        ["devices retry every 5 s", "exponential to 100 s", "full jitter", "even from 1 s", "proxy, one Retry-After"]
    {
        let (requests, refused) = row(who);
        assert!(requests > ours && refused > 0, "{who}: {compared}");
    }
}

#[test]
fn what_makes_no_sense_is_named_and_exits_2() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(directory.path(), name, text);
    let (unknown, empty) =
        (file("unknown.csv", "tenant,device\na,1\n"), file("many.csv", "tenant,devices\na,1\nb,many\n"));
    let (crlf, cr) = (
        file("crlf.csv", "tenant,devices\r\na,1\r\nb,many\r\n"),
        file("cr.csv", "\u{feff}tenant,devices\r\r\"a\rb\",1\rc,many"),
    );
    for (arguments, named) in [
        (vec!["--tenants", &crlf], "line 3: devices is \"many\""),
        (vec!["--tenants", &cr], "line 3: tenant is"),
        (vec!["--chart", "plan.png"], "SVG"),
        (vec!["--boot", "spiral:5m"], "spiral"),
        (vec!["--deadline", "soon"], "30m"),
        (vec!["--devices", "0"], "--devices"),
        (vec!["--devices", "many"], "3_000_000"),
        (vec!["--quota", "eu-1=600,eu-1=700"], "eu-1 twice"),
        (vec!["--quota", "eu-1=600,us-1=700", "--instances", "1"], "fewer than the 2"),
        (vec!["--tenants", "nowhere.csv"], "nowhere.csv"),
        (vec!["--tenants", &unknown], "line 1: it has something else"),
        (vec!["--tenants", &empty], "line 3: devices is \"many\""),
        (vec!["--devices", "1000", "--deadline", "1s"], "deadline of 1s"),
    ] {
        let (code, stdout, stderr) = plan(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
}
