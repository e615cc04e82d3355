//! Certificates and keys as operators really have them: at their end, for another name, put together in odd ways.

use std::time::Duration;

use dps_proxy_tests::device::{AUDIENCE, FLEET_KEY};
use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{GatewayBuilder, Reply, TestDps, TestGateway, binary, eventually};
use jiff::ToSpan as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, Client, Method};

/// A certificate authority below another, or a root.
type Authority = CertifiedIssuer<'static, KeyPair>;

/// From so many days ago until in so many days; both may be negative.
#[derive(Clone, Copy)]
struct Days(i64, i64);

const SOUND: Days = Days(10, 90);

impl Days {
    fn apply(self, params: &mut CertificateParams) {
        let day = |days: i64| {
            let date =
                jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date().checked_add(days.days()).unwrap();
            rcgen::date_time_ymd(date.year().into(), date.month().try_into().unwrap(), date.day().try_into().unwrap())
        };
        (params.not_before, params.not_after) = (day(-self.0), day(self.1));
    }
}

fn authority(name: &str, days: Days, above: Option<&Authority>) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    days.apply(&mut params);
    let key = KeyPair::generate().unwrap();
    match above {
        None => CertifiedIssuer::self_signed(params, key).unwrap(),
        Some(above) => CertifiedIssuer::signed_by(params, key, above).unwrap(),
    }
}

/// A server's certificate and key.
fn leaf(names: &[&str], days: Days, issuer: &Issuer<'_, KeyPair>) -> (String, String) {
    leaf_with(names, issuer, |params| days.apply(params))
}

/// One that ends in a moment.
fn leaf_for(life: Duration, issuer: &Issuer<'_, KeyPair>) -> (String, String) {
    leaf_with(&["localhost", AUDIENCE], issuer, |params| {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Days(10, 1).apply(params);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch + life;
    })
}

fn leaf_with(
    names: &[&str],
    issuer: &Issuer<'_, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> (String, String) {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, names[0]);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

async fn builder(chain: &str, key: &str) -> GatewayBuilder {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await).tls(Plane::Device);
    builder.secret("device.pem", chain).secret("device-key.pem", key)
}

/// Exit code and standard error of `check-config`.
fn check(gateway: &TestGateway) -> (Option<i32>, String) {
    let output = binary::run(&["check-config", gateway.config_path().to_str().unwrap()]);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn a_certificate_is_checked_for_its_time_and_its_name() {
    let root = authority("root", SOUND, None);
    let names: &[&str] = &[AUDIENCE, "localhost"];
    let of = |names: &[&str], days| leaf(names, days, &root);
    let below = |days| {
        let intermediate = authority("intermediate", days, Some(&root));
        let (chain, key) = leaf(names, SOUND, &intermediate);
        (chain + &intermediate.pem(), key)
    };
    let old_root = authority("old root", Days(800, -700), None);
    let (under_old, key_under_old) = leaf(names, SOUND, &old_root);
    for (what, (chain, key), code, said) in [
        ("sound", of(names, SOUND), 0, &[][..]),
        (
            "expired",
            of(names, Days(100, -2)),
            2,
            &["device.tls_cert_file", "the server's certificate expired on", "days ago"],
        ),
        ("not yet valid", of(names, Days(-3, 90)), 2, &["device.tls_cert_file", "not valid before"]),
        ("near its end", of(names, Days(60, 10)), 0, &["warning: device.tls_cert_file", "expires on", "days; renew"]),
        ("for another name", of(&["other.test"], SOUND), 0, &["warning: device.tls_cert_file", "not for", AUDIENCE]),
        ("an issuer that expired", below(Days(100, -2)), 2, &["certificate number 2 of the chain expired"]),
        ("an issuer near its end", below(Days(100, 5)), 0, &["warning", "certificate number 2 of the chain expires"]),
        ("a root that expired", (under_old + &old_root.pem(), key_under_old), 0, &["warning", "certificate number 2"]),
        (
            "in disorder",
            {
                let (chain, key) = of(names, SOUND);
                (chain + &authority("stranger", SOUND, None).pem(), key)
            },
            0,
            &["warning", "was not issued by the one after it"],
        ),
    ] {
        let (exit, stderr) = check(&builder(&chain, &key).await.prepare());
        assert_eq!(exit, Some(code), "{what}: {stderr}");
        for words in said {
            assert!(stderr.contains(words), "{what}: `{words}` is not in {stderr}");
        }
        assert!(!said.is_empty() || !stderr.contains("tls_cert_file"), "{what}: {stderr}");
    }
}

/// Writes the device plane's certificate and key.
fn put(gateway: &TestGateway, (chain, key): (String, String)) {
    std::fs::write(gateway.directory().join("device-key.pem"), key).unwrap();
    std::fs::write(gateway.directory().join("device.pem"), chain).unwrap();
}

/// Asks the service to take its configuration over.
async fn reload(gateway: &TestGateway) -> Reply {
    gateway.send(gateway.operator(Method::POST, "/v1/config/reload")).await
}

/// How long the device plane's certificate is valid still, in seconds, as the metric says.
async fn left_seconds(gateway: &TestGateway) -> f64 {
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    let series = "dps_proxy_tls_certificate_left_seconds{plane=\"device\"} ";
    let sample = metrics.lines().find_map(|line| line.strip_prefix(series)).map(|value| value.parse::<f64>().unwrap());
    sample.unwrap_or_else(|| panic!("{metrics}"))
}

#[tokio::test]
async fn a_certificate_that_expires_while_it_serves_keeps_nothing_else_from_being_changed() {
    let root = authority("root", SOUND, None);
    let mut gateway = builder("", "").await.prepare();
    // Long enough for a service on a busy machine to start with it.
    put(&gateway, leaf_for(Duration::from_secs(8), &root));
    gateway.start_again().await;
    eventually("it has expired", async || left_seconds(&gateway).await < -1.0).await;

    let quota = async |gateway: &TestGateway| gateway.instance_view("eu-1").await["quotaPerMinute"].clone();
    let told = gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "77");
        })
        .await;
    assert_eq!(quota(&gateway).await, 77);
    let warnings = told.json["warnings"].to_string();
    assert!(warnings.contains("device.tls_cert_file") && warnings.contains("expired on"), "{warnings}");
    let taken_over = |line: &serde_json::Value| {
        line["message"] == "configuration applied" && line["warnings"].to_string().contains("expired on")
    };
    gateway.logged("the log tells it too", taken_over).await;
    // For a start it is not good enough, nor is another one that has expired.
    assert_eq!(check(&gateway).0, Some(2));
    put(&gateway, leaf(&["localhost", AUDIENCE], Days(60, -2), &root));
    gateway.edit_config(|config| {
        config.set("instances.eu-1.quota_per_minute", "78");
    });
    let refused = reload(&gateway).await.problem(422, "invalid-configuration");
    assert!(refused.json["problems"].to_string().contains("expired on"), "{}", refused.body);
    assert_eq!(quota(&gateway).await, 77);

    put(&gateway, leaf(&["localhost", AUDIENCE], SOUND, &root));
    let told = reload(&gateway).await.ok();
    assert!(!told.json["warnings"].to_string().contains("tls_cert_file"), "{}", told.body);
    assert_eq!(quota(&gateway).await, 78);
    assert!(left_seconds(&gateway).await > 0.0);
}

#[tokio::test]
async fn the_end_of_a_certificate_is_in_log_and_metrics_and_an_expired_one_is_not_taken_over() {
    let root = authority("root", SOUND, None);
    let (chain, key) = leaf(&["localhost", AUDIENCE], Days(60, 10), &root);
    let mut gateway = builder(&chain, &key).await.start().await;
    let told = gateway.logged("the end of the certificate", |line| {
        line["plane"] == "device" && line["message"].as_str().is_some_and(|text| text.contains("expires soon"))
    });
    let told = told.await;
    assert!((8..=10).contains(&told["days_left"].as_i64().unwrap()), "{told}");
    let left = async |gateway: &TestGateway| left_seconds(gateway).await / 86_400.0;
    assert!((8.0..=10.0).contains(&left(&gateway).await));

    let served = async |gateway: &TestGateway| {
        let client =
            Client::builder().no_proxy().tls_certs_only([Certificate::from_pem(root.pem().as_bytes()).unwrap()]);
        client
            .build()
            .unwrap()
            .get(gateway.url(Plane::Device, "/v1/time"))
            .send()
            .await
            .map(|answer| answer.status().as_u16())
    };
    assert_eq!(served(&gateway).await.unwrap(), 200);
    put(&gateway, leaf(&["localhost", AUDIENCE], Days(60, -2), &root));
    let refused = reload(&gateway).await.problem(422, "invalid-configuration");
    assert!(refused.json["problems"].to_string().contains("expired"), "{}", refused.body);
    assert_eq!(served(&gateway).await.unwrap(), 200, "the one that is still good stays");
    put(&gateway, leaf(&["localhost", AUDIENCE], SOUND, &root));
    reload(&gateway).await.ok();
    assert!((88.0..=90.0).contains(&left(&gateway).await));
    gateway.terminate().await;
}

#[tokio::test]
async fn a_chain_whose_certificates_share_a_line_is_served_whole() {
    let root = authority("root", SOUND, None);
    let intermediate = authority("intermediate", SOUND, Some(&root));
    let (chain, key) = leaf(&["localhost", AUDIENCE], SOUND, &intermediate);
    let chain = format!("Bag Attributes: none\r\n{}{}", chain.trim_end(), intermediate.pem().replace('\n', "\r\n"));
    assert!(chain.contains("-----END CERTIFICATE----------BEGIN CERTIFICATE-----"));
    let gateway = builder(&chain, &key).await.start().await;
    // It knows the root only, so it depends on the intermediate certificate that is sent.
    let client = Client::builder().no_proxy().tls_certs_only([Certificate::from_pem(root.pem().as_bytes()).unwrap()]);
    let answer = client.build().unwrap().get(gateway.url(Plane::Device, "/v1/time")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_key_file_may_be_wrapped_and_what_else_is_wrong_with_it_is_said_by_its_likely_cause() {
    let dps = TestDps::start().await;
    let check = |content: &str| {
        let gateway = TestGateway::builder().instance("eu-1", &dps).secret("fleet.key", content).prepare();
        check(&gateway)
    };
    let (head, tail) = FLEET_KEY.split_at(20);
    for sound in [format!("{head}\n{tail}\n"), format!("\u{feff}{FLEET_KEY}\r\n"), format!(" {head}\r\n  {tail}")] {
        let (code, stderr) = check(&sound);
        assert_eq!(code, Some(0), "{sound:?}: {stderr}");
    }
    use base64::Engine as _;
    let twice = base64::engine::general_purpose::STANDARD.encode(FLEET_KEY);
    for (wrong, cause) in [
        (format!("\"{FLEET_KEY}\""), "in quotes"),
        (twice, "twice"),
        (format!("HostName=a;SharedAccessKeyName=b;SharedAccessKey={FLEET_KEY}"), "connection string"),
        ("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff".to_owned(), "hexadecimal"),
        ("-----BEGIN CERTIFICATE-----\nMIGH\n-----END CERTIFICATE-----".to_owned(), "PEM"),
    ] {
        let (code, stderr) = check(&wrong);
        assert_eq!(code, Some(2), "{cause}: {stderr}");
        assert!(stderr.contains("enrollments.fleet.group_key_file") && stderr.contains(cause), "{cause}: {stderr}");
        assert!(!stderr.contains(head), "{stderr}");
    }
}

#[tokio::test]
async fn a_pem_file_that_holds_something_else_is_said_by_its_likely_cause() {
    let root = authority("root", SOUND, None);
    let (chain, key) = leaf(&["localhost", AUDIENCE], SOUND, &root);
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(&chain);
    for (chain, key, at, cause) in [
        (&key, &chain, "device.tls_cert_file", "swapped"),
        (&key, &chain, "device.tls_key_file", "swapped"),
        (&encoded, &key, "device.tls_cert_file", "encoded once too often"),
        (&chain.replace('\n', "\\n"), &key, "device.tls_cert_file", "\\n written out"),
        (&chain[..chain.len() - 60].to_owned(), &key, "device.tls_cert_file", "cut off"),
    ] {
        let (code, stderr) = check(&builder(chain, key).await.prepare());
        assert!(code == Some(2) && stderr.contains(at) && stderr.contains(cause), "{cause}: {stderr}");
    }
}
