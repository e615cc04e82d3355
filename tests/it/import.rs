//! The allow-list.

use std::fmt::Write as _;

use dps_proxy_tests::{Reply, TestDps, TestGateway};
use reqwest::Method;
use serde_json::{Value, json};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

async fn gateway() -> TestGateway {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let builder =
        builder.set("enrollments.own.upstream", "\"individual\"").set("enrollments.own.membership", "\"allow-list\"");
    builder.set("enrollments.own.audiences", "[\"own.test\"]").start().await
}

async fn import_ndjson(gateway: &TestGateway, lines: String) -> Reply {
    let request =
        gateway.operator(Method::POST, "/v1/registrations/import").header("Content-Type", "application/x-ndjson");
    gateway.send(request.body(lines)).await
}

fn problem_lines(reply: &Reply) -> Vec<u64> {
    reply.json["problems"].as_array().unwrap().iter().map(|problem| problem["line"].as_u64().unwrap()).collect()
}

fn counts(reply: &Reply) -> Value {
    json!([reply.json["new"], reply.json["renewed"], reply.json["unchanged"], reply.json["rejected"]])
}

#[tokio::test]
async fn ten_thousand_lines_are_taken_and_sending_them_again_changes_nothing() {
    let gateway = gateway().await;
    let csv = (0..10_000).fold("hardwareId,enrollment,batch\r\n".to_owned(), |mut csv, number| {
        write!(csv, "SN-{number},fleet,b1\r\n").unwrap();
        csv
    });
    assert_eq!(counts(&gateway.import_csv(csv.clone()).await.ok()), json!([10_000, 0, 0, 0]));
    assert_eq!(counts(&gateway.import_csv(csv.clone()).await.ok()), json!([0, 0, 10_000, 0]));
    assert_eq!(counts(&gateway.import_csv(csv.replace("b1", "b2")).await.ok()), json!([0, 10_000, 0, 0]));
    for id in ["sn-0", "sn-9999"] {
        let listed = gateway.operator_get(&format!("/v1/registrations/{id}")).await.ok();
        assert_eq!(
            (&listed.json["listed"]["batch"], &listed.json["hardwareId"]),
            (&json!("b2"), &json!(id.to_uppercase()))
        );
    }
}

#[tokio::test]
async fn wrong_lines_are_told_by_number_without_their_keys_and_the_others_are_taken() {
    let gateway = gateway().await;
    let lines = [
        format!(r#"{{"hardwareId":"a","enrollment":"own","key":"{KEY}"}}"#),
        r#"{"hardwareId":"b","enrollment":"own"}"#.to_owned(),
        String::new(),
        r#"{"hardwareId":"-c","enrollment":"fleet"}"#.to_owned(),
        r#"{"hardwareId":"d","enrollment":"nowhere"}"#.to_owned(),
        format!(r#"{{"hardwareId":"e","enrollment":"own","keey":"{KEY}"}}"#),
        format!(r#"{{"hardwareId":"f","enrollment":"own","key":"{KEY}!"}}"#),
        format!(r#"{{"hardwareId":"g","enrollment":"fleet","key":"{KEY}"}}"#),
        "not json".to_owned(),
        r#"{"hardwareId":"h","enrollment":"fleet","tenant":"umbrella"}"#.to_owned(),
        r#"{"hardwareId":"A","enrollment":"fleet"}"#.to_owned(),
        format!(r#"{{"hardwareId":"i","enrollment":"fleet","batch":"{}"}}"#, "x".repeat(5000)),
        r#"{"hardwareId":"j","enrollment":"fleet"}"#.to_owned(),
        r#"["k","fleet",null,null,null]"#.to_owned(),
    ];
    let reply = import_ndjson(&gateway, lines.join("\n")).await.ok();
    assert_eq!(counts(&reply), json!([2, 1, 0, 10]), "{}", reply.body);
    let mut told = problem_lines(&reply);
    told.sort_unstable();
    assert_eq!(told, [2, 4, 5, 6, 7, 8, 9, 10, 12, 14], "{}", reply.body);
    let twice = gateway.operator_get("/v1/registrations/a").await.ok();
    assert_eq!(twice.json["enrollment"], "fleet", "of two lines for one device the last one stands: {}", twice.body);
    assert!(!reply.body.contains(KEY) && !reply.body.contains("AAECAwQ"), "{}", reply.body);
    let named = reply.json["problems"].to_string();
    for word in ["nowhere", "operator.import_line_max_bytes", "tenant", "individual"] {
        assert!(named.contains(word), "{word}: {named}");
    }
    gateway.operator_get("/v1/registrations/j").await.ok();
    gateway.operator_get("/v1/registrations/h").await.problem(404, "unknown-registration");

    let csv = format!("enrollment,hardwareId,key\nown,k,{KEY}\nown,l\n\"own\",\"m\",\"{KEY}\"\nown,n,{KEY},acme\n");
    let reply = gateway.import_csv(csv).await.ok();
    assert_eq!((counts(&reply), problem_lines(&reply)), (json!([2, 0, 0, 2]), vec![3, 5]), "{}", reply.body);
    assert!(!reply.body.contains(KEY));
}

#[tokio::test]
async fn a_file_that_is_no_list_is_refused() {
    let gateway = gateway().await;
    let request = |content_type: &'static str, body: String| {
        gateway.operator(Method::POST, "/v1/registrations/import").header("Content-Type", content_type).body(body)
    };
    gateway.send(request("application/json", "[]".to_owned())).await.problem(415, "unsupported-media-type");
    gateway.send(request("text/csv", "x".repeat(200_000))).await.problem(413, "line-too-long");
    for headless in ["sn-1,fleet\nsn-2,fleet\n", "sn-2,fleet\n", "hardwareId,batch\nsn-2,b\n"] {
        let reply = gateway.send(request("text/csv", headless.to_owned())).await.problem(400, "wrong-header");
        assert!(!reply.body.contains("sn-"), "{}", reply.body);
    }
    gateway.operator_get("/v1/registrations/sn-2").await.problem(404, "unknown-registration");
    assert_eq!(counts(&gateway.send(request("text/csv", String::new())).await.ok()), json!([0, 0, 0, 0]));
    for (content_type, rowless) in [
        ("text/csv", "hardwareId,enrollment\n"),
        ("text/csv", "hardwareId,enrollment"),
        ("application/x-ndjson", "\u{feff}\r\n"),
    ] {
        let reply = gateway.send(request(content_type, rowless.to_owned())).await.problem(400, "no-rows");
        assert!(reply.detail().contains("row"), "{}", reply.body);
    }
}

#[tokio::test]
async fn every_row_is_counted_whatever_ends_a_line() {
    let gateway = gateway().await;
    let sums = |reply: &Reply| {
        let count = |member: &str| reply.json[member].as_u64().unwrap();
        assert_eq!(
            count("rows"),
            count("new") + count("renewed") + count("unchanged") + count("rejected"),
            "{}",
            reply.body
        );
        count("rows")
    };
    for (name, end) in [("lf", "\n"), ("cr", "\r"), ("crlf", "\r\n")] {
        let csv = ["hardwareId,enrollment", "{}-1,fleet", "-,fleet", "{}-2,fleet", ""].join(end).replace("{}", name);
        let reply = gateway.import_csv(csv).await.ok();
        assert_eq!((counts(&reply), problem_lines(&reply)), (json!([2, 0, 0, 1]), vec![3]), "{name}: {}", reply.body);
        assert_eq!(sums(&reply), 3);
        let lines =
            [r#"{"hardwareId":"{}-3","enrollment":"fleet"}"#, "", "x", r#"{"hardwareId":"{}-4","enrollment":"fleet"}"#];
        let reply = import_ndjson(&gateway, lines.join(end).replace("{}", name)).await.ok();
        assert_eq!((counts(&reply), problem_lines(&reply)), (json!([2, 0, 0, 1]), vec![3]), "{name}: {}", reply.body);
    }
    // One stray CR in a file of LFs, and a quoted field over two lines.
    let csv = "hardwareId,enrollment,batch\na1,fleet,b\ra2,fleet,b\na3,fleet,\"b\nc\"\n\"a\n4\",fleet,b\na5,fleet,b\n";
    let reply = gateway.import_csv(csv).await.ok();
    assert_eq!((counts(&reply), problem_lines(&reply)), (json!([4, 0, 0, 1]), vec![6]), "{}", reply.body);
    assert_eq!(sums(&reply), 5);
    // A quote that is never closed takes the rest of the file into one row, and that is said.
    let reply = gateway.import_csv("hardwareId,enrollment\nb1,fleet\n\"b2,fleet\nb3,fleet\n").await.ok();
    assert_eq!((counts(&reply), problem_lines(&reply)), (json!([1, 0, 0, 1]), vec![3]), "{}", reply.body);
    assert!(reply.body.contains("never closed"), "{}", reply.body);
}

#[tokio::test]
async fn a_byte_order_mark_in_front_is_no_part_of_the_first_line() {
    let gateway = gateway().await;
    let reply = gateway.import_csv("\u{feff}hardwareId,enrollment\r\na,fleet\r\nb,fleet\r\n").await.ok();
    assert_eq!(counts(&reply), json!([2, 0, 0, 0]), "{}", reply.body);
    let lines = "\u{feff}{\"hardwareId\":\"c\",\"enrollment\":\"fleet\"}\n".to_owned();
    assert_eq!(counts(&import_ndjson(&gateway, lines.clone()).await.ok()), json!([1, 0, 0, 0]));
    // Only in front: elsewhere it is a character that belongs to nothing.
    assert_eq!(counts(&import_ndjson(&gateway, format!("\n{lines}")).await.ok()), json!([0, 0, 0, 1]));
}

#[tokio::test]
async fn the_number_of_rows_is_bounded_whether_or_not_they_can_be_read() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).set("operator.import_rows_max", "3").start().await;
    let reply = gateway
        .import_csv("hardwareId,enrollment\na,fleet\n\nb,fleet\nc,fleet\nd,fleet\n")
        .await
        .problem(413, "too-many-lines");
    assert!(reply.detail().contains("3 rows (operator.import_rows_max)"), "{}", reply.detail());
    gateway.operator_get("/v1/registrations/c").await.ok();
    gateway.operator_get("/v1/registrations/d").await.problem(404, "unknown-registration");
    let allowed = gateway.import_csv("hardwareId,enrollment\na,fleet\n\nb,fleet\nc,fleet\n").await.ok();
    assert_eq!(counts(&allowed), json!([0, 0, 3, 0]));
    let unreadable = format!("not json\n{{}}\n{}\n", "x".repeat(5000));
    assert_eq!(counts(&import_ndjson(&gateway, unreadable.clone()).await.ok()), json!([0, 0, 0, 3]));
    import_ndjson(&gateway, unreadable + "not json either\n").await.problem(413, "too-many-lines");
}
