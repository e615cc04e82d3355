use super::*;

#[test]
fn the_least_configuration_has_the_defaults_of_the_contract() {
    let loaded = Directory::new().load(&least(), &[]).unwrap();
    let instance = loaded.settings.instances.values().next().unwrap();
    assert_eq!((instance.quota_per_minute, instance.burst, instance.capacity), (1000, 10, 1_000_000));
    assert_eq!(instance.endpoint, "https://global.azure-devices-provisioning.net");
    assert_eq!(loaded.settings.default_enrollment.unwrap().as_str(), "plant");
    assert_eq!(loaded.settings.registration.upstream_max_delay, Duration::from_secs(30));
    assert_eq!(loaded.settings.feed.retention, Duration::from_secs(7 * 86_400));
    assert_eq!(loaded.server.operator.http.listen.to_string(), "127.0.0.1:8082");
    assert_eq!(loaded.live.host_names, ["p.example.com"]);
    assert_eq!(keys(&loaded.warnings), ["backend.tokens", "device.tls", "operator.tokens"]);
}

/// Text that is added to the least configuration (`D:` in front: in `[device]`, `I:` in the instance, `E:` in the enrollment,
/// else at the end), and the keys that are then wrong.
const BAD: &[(&str, &[&str])] = &[
    ("D:tls_cert_file = \"cert\"", &["device.tls"]),
    ("D:listen = \"8443\"", &["device.listen"]),
    ("D:request_timeout = 10", &["device.request_timeout"]),
    ("D:wait_max = \"6m\"", &["device.wait_max"]),
    ("D:wait_max = \"soon\"", &["device.wait_max"]),
    ("D:workers = -1", &["device.workers"]),
    ("D:workers = \"two\"", &["device.workers"]),
    ("D:payload_max_bytes = 8192", &["device.payload_max_bytes"]),
    ("D:listen = \"0.0.0.0:8081\"", &["backend.listen"]),
    ("D:wait_maximum = \"1s\"", &["device.wait_maximum"]),
    ("[backend]\nlisten = \"0.0.0.0:8081\"", &["backend.tls_cert_file"]),
    ("[backend]\ntls_cert_file = \"cert\"\ntls_key_file = \"unrelated-key\"", &["backend.tls_key_file"]),
    ("[backend]\ntls_cert_file = \"key\"\ntls_key_file = \"key\"", &["backend.tls_cert_file", "backend.tls_key_file"]),
    ("[[backend.tokens]]", &["backend.tokens[0].name", "backend.tokens[0].token_file"]),
    ("[[backend.tokens]]\nname = \"a\"\ntoken_file = \"short\"", &["backend.tokens[0].token_file"]),
    ("[[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"\ntenants = []", &["backend.tokens[0].tenants"]),
    ("[[operator.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"", &["operator.tokens[0].role"]),
    ("[[operator.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"\nrole = \"admin\"", &["operator.tokens[0].role"]),
    (
        "[[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"\n\
         [[operator.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"\nrole = \"read\"",
        &["operator.tokens[0].token_file"],
    ),
    (
        "[[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"\n[[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-2\"",
        &["backend.tokens[1].name"],
    ),
    ("[backend.tokens]\nname = \"a\"", &["backend.tokens"]),
    ("[log]\nfilter = \"a=b=c\"\nformat = \"xml\"", &["log.filter", "log.format"]),
    ("[store]\nbackend = \"postgres\"", &["store.backend"]),
    ("[store]\nbackend = \"postgresql\"", &["store.postgresql.connection"]),
    (
        "[store]\nbackend = \"postgresql\"\npath = \"x\"\ncache_mib = 32\n[store.postgresql]\nconnection = \"host=db user=g\"",
        &["store.cache_mib", "store.path"],
    ),
    (
        "[store.postgresql]\nconnection = \"host=db user=g\"\ndurability = \"single\"",
        &["store.postgresql.connection", "store.postgresql.durability"],
    ),
    (
        "[store]\nbackend = \"postgresql\"\n[store.postgresql]\nconnection = \"host=db user=g password=hunter2\"\npassword_file = \"empty\"\n\
         lock_timeout = \"10s\"\ndurability = \"some\"\nca_file = \"key\"",
        &[
            "store.postgresql.ca_file",
            "store.postgresql.connection",
            "store.postgresql.durability",
            "store.postgresql.lock_timeout",
            "store.postgresql.password_file",
        ],
    ),
    (
        "[store]\nbackend = \"postgresql\"\n[store.postgresql]\nconnection = \"host=127.0.0.1 user=g\"\nca_file = \"cert\"",
        &["store.postgresql.ca_file"],
    ),
    (
        "[store]\nbackend = \"postgresql\"\n[store.postgresql]\nconnection = \"host=db user=g sslmode=require\"\ntls = \"off\"",
        &["store.postgresql.tls"],
    ),
    ("[line]\nlength_max = 0", &["line.length_max"]),
    ("[registration]\npoll_interval = \"1s\"", &["registration.poll_interval"]),
    ("[registration]\nbackoff_min = \"2m\"", &["registration.backoff_min"]),
    ("[registration]\napi_version = \"2021/10\"", &["registration.api_version"]),
    ("[regristration]", &["regristration"]),
    ("I:region = \"\"", &["instances.eu-1.region"]),
    ("I:burst = 20\nquota_per_minute = 10", &["instances.eu-1.burst"]),
    ("I:quota_per_minute = 0", &["instances.eu-1.quota_per_minute"]),
    ("I:hubs = [\"hub-a.net\", \"https://hub\"]", &["instances.eu-1.hubs[1]"]),
    ("I:endpoint = \"http://dps.example.com\"", &["instances.eu-1.endpoint"]),
    ("I:endpoint = \"https://user:secret@dps.example.com\"", &["instances.eu-1.endpoint"]),
    ("I:endpoint = \"https://dps.example.com/path\"", &["instances.eu-1.endpoint"]),
    ("I:extra_ca_file = \"key\"", &["instances.eu-1.extra_ca_file"]),
    ("I:labels = { a = 1 }", &["instances.eu-1.labels.a"]),
    ("I:tenant = \"Acme\"", &["instances.eu-1.tenant"]),
    ("I:tenant = \"acme\"", &["enrollments.plant"]),
    ("[instances.Eu_2]\nid_scope = \"0ne1\"", &["instances.Eu_2"]),
    ("[instances.eu-2]\nid_scope = \"0ne000AB12C\"", &["instances.eu-2.id_scope"]),
    // A private endpoint leads to the same instance as the global one.
    (
        "[instances.eu-2]\nid_scope = \"0ne000AB12C\"\nendpoint = \"https://x.azure-devices-provisioning.net\"",
        &["instances.eu-2.id_scope"],
    ),
    ("[instances.eu-2]", &["instances.eu-2.id_scope"]),
    ("E:attestation = \"x509\"", &["enrollments.plant.attestation"]),
    ("E:attestation = \"sas\"", &["enrollments.plant.attestation"]),
    ("E:attestation = \"allow-list-alone\"", &["enrollments.plant.accept_unauthenticated_devices"]),
    (
        "E:attestation = \"allow-list-alone\"\naccept_unauthenticated_devices = true\ncredential = \"hub-sas\"\n\
         credential_once = true\nallow_fleet_token_credentials = true",
        &["enrollments.plant.credential"],
    ),
    ("E:attestation = \"fleet-token\"", &["enrollments.plant.fleet_token_files"]),
    ("E:attestation = \"fleet-token\"\nfleet_token_files = [\"empty\"]", &["enrollments.plant.fleet_token_files[0]"]),
    (
        "E:attestation = \"fleet-token\"\nfleet_token_files = [\"token-1\"]\ncredential = \"derived-key\"\ncredential_once = true",
        &["enrollments.plant.credential"],
    ),
    (
        "E:attestation = \"fleet-token\"\nfleet_token_files = [\"token-1\"]\ncredential = \"hub-sas\"\n\
         allow_fleet_token_credentials = true",
        &["enrollments.plant.credential"],
    ),
    (
        "E:attestation = \"fleet-token\"\nfleet_token_files = [\"token-1\"]\n\
         [[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"",
        &["backend.tokens[0].token_file"],
    ),
    (
        "E:attestation = \"fleet-token\"\nfleet_token_files = [\"token-1\"]\nmembership = \"signature\"\naudiences = [\"a\"]",
        &["enrollments.plant.audiences", "enrollments.plant.membership"],
    ),
    ("E:fleet_token_files = [\"token-1\"]", &["enrollments.plant.fleet_token_files"]),
    ("E:audiences = []", &["enrollments.plant.audiences"]),
    ("E:audiences = [\"a/b\"]", &["enrollments.plant.audiences[0]"]),
    ("E:hosts = \"https://x\"", &["enrollments.plant.hosts"]),
    ("E:group_key_overrides = { eu-1 = \"other-key\" }", &["enrollments.plant.group_key_overrides.eu-1"]),
    ("E:group_key_overrides = { eu-9 = \"key\" }", &["enrollments.plant.group_key_overrides.eu-9"]),
    ("E:upstream = \"individual\"", &["enrollments.plant.group_key_file", "enrollments.plant.membership"]),
    ("E:instances = [\"eu-2\"]", &["enrollments.plant.instances[0]"]),
    ("E:region = \"north\"", &["enrollments.plant"]),
    ("E:labels = { a = \"b\" }", &["enrollments.plant"]),
    ("E:credential_lifetime = \"30s\"", &["enrollments.plant.credential_lifetime"]),
    (
        "[instances.us-1]\nid_scope = \"0ne1\"\ntenant = \"acme\"\n\
         [enrollments.other]\ngroup_key_file = \"key\"\naudiences = [\"o\"]\ninstances = [\"eu-1\", \"us-1\"]",
        &["enrollments.other.instances"],
    ),
    ("[enrollments.rest]\ngroup_key_file = \"key\"", &["enrollments.rest.audiences"]),
    (
        "E:hosts = [\"x.example.com\"]\n\
         [enrollments.rest]\ngroup_key_file = \"key\"\naudiences = [\"r\"]\nhosts = [\"X.example.com\"]",
        &["enrollments.rest.hosts"],
    ),
    ("[enrollments.rest]\naudiences = [\"r\"]\ngroup_key_file = \"nowhere\"", &["enrollments.rest.group_key_file"]),
    ("[enrollments.rest]\naudiences = [\"r\"]\ngroup_key_file = \"secrets\"", &["enrollments.rest.group_key_file"]),
    ("[enrollments.rest]\naudiences = [\"r\"]\ngroup_key_file = \"token-1\"", &["enrollments.rest.group_key_file"]),
    ("[enrollments.rest]\naudiences = [\"r\"]", &["enrollments.rest.group_key_file"]),
];

fn with(addition: &str) -> String {
    let (into, text) = addition.split_once(':').filter(|(into, _)| into.len() == 1).unwrap_or(("", addition));
    let part = |name: &str, base: &str| if into == name { format!("{base}{text}\n") } else { base.to_owned() };
    let end = if into.is_empty() { text } else { "" };
    // The enrollment comes last: what is added to it may open further tables.
    format!("{}{}{}{end}", part("D", DEVICE), part("I", INSTANCE), part("E", ENROLLMENT))
}

#[test]
fn each_bad_configuration_is_refused_at_the_right_key() {
    let directory = Directory::new();
    let mut wrong = String::new();
    for (addition, expected) in BAD {
        match directory.load(&with(addition), &[]) {
            Ok(_) => wrong += &format!("passes, but should not:\n{addition}\n\n"),
            Err(problems) if keys(&problems.problems) == *expected => {}
            Err(problems) => wrong += &format!("{addition}\nshould be wrong at {expected:?}, but is\n{problems}\n\n"),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_is_accepted_by_name_passes() {
    let directory = Directory::new();
    for addition in [
        "E:attestation = \"allow-list-alone\"\naccept_unauthenticated_devices = true",
        "E:attestation = \"fleet-token\"\nfleet_token_files = [\"token-1\", \"token-2\"]\ncredential = \"hub-sas\"\n\
         credential_once = true\nallow_fleet_token_credentials = true",
        "E:group_key_overrides = { eu-1 = \"other-key\" }\ncredential = \"derived-key\"",
        "E:group_key_overrides = { eu-1 = \"key\" }",
        "[backend]\nlisten = \"0.0.0.0:8081\"\ntls = \"off\"",
        "[instances.eu-2]\nid_scope = \"0ne000AB12C\"\nendpoint = \"http://127.0.0.1:8443\"\n\
         [instances.eu-3]\nid_scope = \"0ne000AB12D\"\nendpoint = \"http://127.0.0.1:8444/\"",
        "E:membership = \"allow-list\"\n[enrollments.rest]\nupstream = \"individual\"\nmembership = \"allow-list\"",
        "E:derive_from = \"as-given\"",
    ] {
        let text = with(addition);
        if let Err(problems) = directory.load(&text, &[]) {
            panic!("should pass:\n{text}\n{problems}");
        }
    }
}

#[test]
fn a_database_is_named_with_its_password_in_a_file_and_prints_none_of_it() {
    let directory = Directory::new();
    directory.write("password", "hunter2 and more\r\n");
    let store = "[store]\nbackend = \"postgresql\"\ninbox_max = 77\n[store.postgresql]\nconnection = \"host=db user=g\"\n\
        password_file = \"password\"\nca_file = \"cert\"\ndurability = \"synchronous\"\n";
    let loaded = directory.load(&format!("{}{store}", least()), &[]).unwrap();
    assert!(!format!("{loaded:?}").contains("hunter2"), "{loaded:?}");
    let StoreBackend::Postgresql(settings) = loaded.server.store.backend else { panic!("a database") };
    let expected = store_postgresql::ConnectionString::parse("host=db user=g password='hunter2 and more'").unwrap();
    assert_eq!(settings.options.connection, expected);
    assert_eq!(settings.options.durability, store_postgresql::Durability::Synchronous);
    assert_eq!((settings.options.inbox_max, settings.options.roots.unwrap().len()), (77, 1));
    let off = store.replace("ca_file = \"cert\"", "tls = \"off\"").replace("\"synchronous\"", "\"asynchronous\"");
    let loaded = directory.load(&format!("{}{off}", least()), &[]).unwrap();
    let keys = keys(&loaded.warnings);
    assert!(keys.contains(&"store.postgresql.tls") && keys.contains(&"store.postgresql.durability"), "{keys:?}");
    let inside = store.replace("user=g", "user=g password=hunter2");
    let problems = directory.load(&format!("{}{inside}", least()), &[]).unwrap_err();
    assert!(!format!("{problems} {problems:?}").contains("hunter2"), "{problems}");
    assert!(problems.to_string().contains("name a file that holds it in password_file"), "{problems}");
}

#[test]
fn an_instance_with_a_tiny_quota_gets_a_burst_that_fits() {
    let loaded = Directory::new().load(&with("I:quota_per_minute = 3"), &[]).unwrap();
    assert_eq!(loaded.settings.instances.values().next().unwrap().burst, 3);
}

#[test]
fn all_problems_come_at_once_with_line_and_hint() {
    let text = "default_enrollment = \"plnt\"\n[device]\nlistn = \"x\"\n[instances.eu-1]\nquota_per_minute = 0\n\
                [enrollments.plant]\ngroup_key_file = \"nowhere\"\ninstances = [\"eu1\"]\n";
    let problems = Directory::new().load(text, &[]).unwrap_err();
    let expected = [
        "default_enrollment",
        "device.host_name",
        "device.listn",
        "device.tls_cert_file",
        "enrollments.plant.group_key_file",
        "enrollments.plant.instances[0]",
        "instances.eu-1.id_scope",
        "instances.eu-1.quota_per_minute",
    ];
    assert_eq!(keys(&problems.problems), expected, "{problems}");
    let shown = problems.to_string();
    for part in [
        "8 problems",
        "device.listn (line 3): is not a key of the configuration; did you mean `listen`?",
        "instances.eu-1.quota_per_minute (line 5): 0 is out of bounds: 1 to 1000000",
        "enrollments.plant.instances[0] (line 8): there is no instance of this name; did you mean `eu-1`?",
        "did you mean `plant`?",
        "device.host_name (line 2): is missing",
    ] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
}

#[test]
fn a_key_of_an_earlier_version_is_refused_with_its_new_name() {
    let text = with("I:learn_limit = true\nlearned_min_percent = 20");
    let shown = Directory::new().load(&text, &[]).unwrap_err().to_string();
    for part in [
        "instances.eu-1.learn_limit (line 6): is called `adaptive_limit` now; rename it",
        "instances.eu-1.learned_min_percent (line 7): is called `adaptive_limit_min_percent` now; rename it",
    ] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
}

#[test]
fn one_kind_of_check_keeps_no_other_from_being_made() {
    let text = "default_enrollment = \"plant\"\n\
                [store]\nfree_space_min_mib = 1\n\
                [device]\nhost_name = \"p.example.com\"\ntls = \"off\"\nlisten = \"nowhere\"\npayload_max_bytes = 9000\n\
                [log]\nfilter = \"a=b=c\"\n\
                [line]\nlength_max = 0\n\
                [instances.eu-1]\nid_scope = \"0ne000AB12C\"\nquota_per_minute = 0\n\
                [instances.eu-2]\nid_scope = \"0ne000AB12C\"\nburst = 0\n\
                [enrollments.plant]\ngroup_key_file = \"nowhere\"\nhosts = [\"a.example.com\"]\nregion = \"mars\"\n\
                [enrollments.rest]\ngroup_key_file = \"key\"\nhosts = [\"a.example.com\"]\n\
                [regristration]\n";
    let problems = Directory::new().load(text, &[]).unwrap_err();
    let expected = [
        "device.listen",
        "device.payload_max_bytes",
        "enrollments.plant",
        "enrollments.plant.group_key_file",
        "enrollments.rest.audiences",
        "enrollments.rest.hosts",
        "instances.eu-1.quota_per_minute",
        "instances.eu-2.burst",
        "instances.eu-2.id_scope",
        "line.length_max",
        "log.filter",
        "regristration",
        "store.free_space_min_mib",
    ];
    assert_eq!(keys(&problems.problems), expected, "{problems}");
}

#[test]
fn a_variable_that_would_replace_a_table_or_a_list_of_tables_is_named() {
    let directory = Directory::new();
    let text = with("[[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"");
    for (variable, value, key) in [
        ("DPS_PROXY__BACKEND__TOKENS", "[]", "backend.tokens"),
        ("DPS_PROXY__BACKEND__TOKENS", "[{name = \"b\", token_file = \"token-2\"}]", "backend.tokens"),
        ("DPS_PROXY__OPERATOR__TOKENS", "[]", "operator.tokens"),
        ("DPS_PROXY__LINE", "{}", "line"),
        ("DPS_PROXY__TENANTS", "{}", "tenants"),
        ("DPS_PROXY__INSTANCES__EU_1", "{id_scope = \"0ne1\"}", "instances.eu-1"),
    ] {
        let problems = directory.load(&text, &[(variable, value)]).unwrap_err();
        let told = problems.problems.iter().find(|problem| problem.key == key);
        assert_eq!(told.and_then(|problem| problem.variable.as_deref()), Some(variable), "{value}: {problems}");
    }
    // A key whose value is a table is set as a whole, and may be.
    let labels = [("DPS_PROXY__INSTANCES__EU_1__LABELS", "{line = \"2\"}")];
    assert!(directory.load(&text, &labels).is_ok());
}

#[test]
fn what_is_not_toml_is_told_by_line_and_without_quoting_it() {
    let problems = Directory::new().load("[device]\nhost_name = hunter2secret\n", &[]).unwrap_err();
    assert!(problems.problems.iter().all(|problem| problem.line == Some(2)), "{problems}");
    assert!(!problems.to_string().contains("hunter2secret"), "{problems}");
}

#[test]
fn a_text_loads_like_the_file_it_would_stand_in() {
    let directory = Directory::new();
    let from_file = directory.load(&least(), &[]).unwrap();
    let from_text = load_str(&least(), &directory.path().join("not-there.toml"), []).unwrap();
    assert_eq!((from_text.server, from_text.settings), (from_file.server, from_file.settings));
}

#[test]
fn a_missing_file_is_one_problem() {
    let problems = load(Path::new("/nowhere/dps-proxy.toml"), []).unwrap_err();
    assert_eq!(problems.problems.len(), 1);
    assert_eq!(problems.files.paths().count(), 1);
}

#[test]
fn the_environment_overrides_single_keys() {
    let env = [
        ("DPS_PROXY__LINE__LENGTH_MAX", "5"),
        ("DPS_PROXY__INSTANCES__EU_1__QUOTA_PER_MINUTE", "60"),
        ("DPS_PROXY__INSTANCES__EU_1__ID_SCOPE", "123"),
        ("DPS_PROXY__REGISTRATION__LOOKUP_SPENDS", "false"),
        ("DPS_PROXY__REGISTRATION__IDLE_TIMEOUT", "5s"),
        ("DPS_PROXY__DEVICE__HOST_NAME", "[\"a.example.com\", \"B.example.com\"]"),
        ("DPS_PROXY__DEFAULT_ENROLLMENT", "plant"),
        ("PATH", "/bin"),
    ];
    let loaded = Directory::new().load(&least(), &env).unwrap();
    assert_eq!(loaded.settings.line.length_max, 5);
    let instance = loaded.settings.instances.values().next().unwrap();
    assert_eq!((instance.quota_per_minute, instance.id_scope.as_str()), (60, "123"));
    assert!(!loaded.settings.registration.lookup_spends);
    assert_eq!(loaded.settings.registration.idle_timeout, Duration::from_secs(5));
    assert_eq!(loaded.live.host_names, ["a.example.com", "b.example.com"]);
}

#[test]
fn a_wrong_variable_is_named() {
    let env = [
        ("DPS_PROXY__LINE__LENGTH", "5"),
        ("DPS_PROXY__LINE__JITTER_MAX", "soon"),
        ("DPS_PROXY__LINE____X", "5"),
        ("DPS_PROXY__BACKEND__TOKENS__0__NAME", "a"),
        ("DPS_PROXY__DEVICE__HOST_NAME__X", "a"),
    ];
    let problems = Directory::new().load(&least(), &env).unwrap_err();
    let expected =
        ["DPS_PROXY__DEVICE__HOST_NAME__X", "DPS_PROXY__LINE____X", "backend.tokens", "line.jitter_max", "line.length"];
    assert_eq!(keys(&problems.problems), expected, "{problems}");
    assert!(problems.to_string().contains("line.length (from DPS_PROXY__LINE__LENGTH)"), "{problems}");
}

#[test]
fn secrets_are_never_shown() {
    let directory = Directory::new();
    let text = with(
        "E:attestation = \"fleet-token\"\nfleet_token_files = [\"token-1\"]\n\
         [[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-2\"",
    );
    let loaded = directory.load(&text, &[]).unwrap();
    // Whoever pastes a secret where a file name belongs does not find it in the log either.
    let pasted = format!("{}group_key_overrides = {{ eu-1 = \"{KEY}\" }}\n", least());
    let problems = directory.load(&pasted, &[("DPS_PROXY__ENROLLMENTS__PLANT__GROUP_KEY", OTHER_KEY)]).unwrap_err();
    let bad_key =
        directory.load(&with("[enrollments.rest]\naudiences=[\"r\"]\ngroup_key_file = \"token-1\""), &[]).unwrap_err();
    let shown = format!("{loaded:?} {problems} {bad_key} {bad_key:?}");
    for secret in [KEY, OTHER_KEY, "token-one", "token-two"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
}

#[cfg(unix)]
#[test]
fn a_secret_that_everybody_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = Directory::new();
    std::fs::set_permissions(directory.path().join("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let loaded = directory.load(&least(), &[]).unwrap();
    assert!(keys(&loaded.warnings).contains(&"enrollments.plant.group_key_file"));
}

#[test]
fn a_share_for_a_tenant_without_an_enrollment_is_a_warning() {
    let loaded =
        Directory::new().load(&with("[tenants.ghost]\nweight = 3\n[tenants.default]\nweight = 2"), &[]).unwrap();
    let keys = keys(&loaded.warnings);
    assert!(keys.contains(&"tenants.ghost") && !keys.contains(&"tenants.default"), "{keys:?}");
}

#[test]
fn several_enrollments_without_a_default_are_a_warning() {
    let text = with("[enrollments.rest]\ngroup_key_file = \"key\"\naudiences = [\"r\"]");
    let loaded = Directory::new().load(&text, &[]).unwrap();
    assert_eq!(loaded.settings.default_enrollment, None);
    assert!(keys(&loaded.warnings).contains(&"default_enrollment"));
}

#[test]
fn what_needs_a_restart_is_named() {
    let directory = Directory::new();
    let old = directory.load(&least(), &[]).unwrap();
    let changed = with(
        "D:connections_max = 100\nwait_max = \"1s\"\n[log]\nfilter = \"debug\"\nformat = \"json\"\n[line]\nlength_max = 3\n\
         [[backend.tokens]]\nname = \"a\"\ntoken_file = \"token-1\"",
    );
    let changed = changed.replace("p.example.com", "q.example.com");
    let new = directory.load(&changed, &[]).unwrap();
    assert_eq!(restart_needed(&old.server, &new.server), ["device.connections_max", "device.wait_max", "log.format"]);
    assert!(restart_needed(&old.server, &old.server).is_empty());
    // The default in words is no change.
    let same = directory.load(&with("[log]\nfilter = \"info\""), &[]).unwrap();
    assert!(restart_needed(&old.server, &same.server).is_empty());
}

#[test]
fn removed_instances_are_named() {
    let directory = Directory::new();
    let two = directory.load(&with("[instances.eu-2]\nid_scope = \"0ne1\""), &[]).unwrap().settings;
    let one = directory.load(&least(), &[]).unwrap().settings;
    assert_eq!(removed_instances(&two, &one), [InstanceName::parse("eu-2").unwrap()]);
    assert!(removed_instances(&one, &two).is_empty());
}
