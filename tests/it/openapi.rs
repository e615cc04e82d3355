//! The OpenAPI document: served, kept in the repository, and true.

use std::collections::BTreeSet;
use std::path::Path;

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{TestDps, TestGateway, binary};
use reqwest::Method;
use serde_json::Value;

const RENEW: &str = "docs/openapi.json is not what the service serves: build it anew";

fn kept(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file)).unwrap_or_default()
}

fn document() -> Value {
    serde_json::from_str(&kept("openapi.json")).expect(RENEW)
}

/// Every operation, with its name for people.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    });
    operations.collect()
}

/// What a value refers to, or the value.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let reference = value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    reference.map_or(value, |pointer| document.pointer(pointer).unwrap_or(&Value::Null))
}

#[test]
fn the_kept_document_is_the_one_that_is_printed() {
    let output = binary::run(&["openapi"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap() == kept("openapi.json"), "{RENEW}");
}

#[tokio::test]
async fn backends_and_operators_are_served_it_without_a_token_and_devices_are_not() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    for plane in [Plane::Backend, Plane::Operator] {
        let reply = gateway.send(gateway.request(plane, Method::GET, "/openapi.json")).await.ok();
        assert_eq!((reply.header("content-type"), reply.header("cache-control")), ("application/json", "no-cache"));
        assert!(reply.body == kept("openapi.json"), "{RENEW}");
        assert_eq!(gateway.send(gateway.request(plane, Method::HEAD, "/openapi.json")).await.ok().body, "");
    }
    gateway.send(gateway.request(Plane::Device, Method::GET, "/openapi.json")).await.problem(404, "no-such-path");
}

#[test]
fn every_operation_tells_its_plane_its_credential_and_its_problems() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let mut names = BTreeSet::new();
    for (name, operation) in operations(&document) {
        assert!(names.insert(operation["operationId"].to_string()), "{name}: its operationId is there twice");
        assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{name}");
        let open = ["/healthz", "/readyz", "/openapi.json", "/v1/time"].iter().any(|path| name.ends_with(path));
        assert_eq!(operation.get("security").is_none(), open, "{name}");
        for (status, answer) in operation["responses"].as_object().unwrap() {
            let is_there = |header: &str| resolved(&document, &answer["headers"][header])["required"] == true;
            let waits = ["401", "403", "422", "429", "503"].contains(&status.as_str());
            assert!(is_there("x-request-id") && (!waits || is_there("Retry-After")), "{name} {status}");
            if status.as_str() < "400" || (name.ends_with("/readyz") && status == "503") {
                continue;
            }
            let schema = &answer["content"]["application/problem+json"]["schema"];
            let codes = schema["allOf"][1]["properties"]["code"]["enum"].as_array();
            assert!(codes.is_some_and(|codes| !codes.is_empty()), "{name} {status}: {answer}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let document = document();
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let named: BTreeSet<&str> =
        text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let missing: Vec<_> = named.iter().filter(|name| !schemas.contains_key(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // The data of events is told in words.
    let by_words = ["Change", "Reset"];
    let unused: Vec<_> =
        schemas.keys().filter(|name| !named.contains(name.as_str()) && !by_words.contains(&name.as_str())).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn every_code_and_every_path_stands_in_the_description_for_people() {
    let (document, words) = (document(), kept("API.md"));
    for code in document["components"]["schemas"]["Code"]["enum"].as_array().unwrap() {
        let code = code.as_str().unwrap();
        let is_told = ["`", " "].iter().any(|before| words.contains(&format!("{before}{code}`")));
        assert!(is_told, "docs/API.md does not say what `{code}` means");
    }
    for path in document["paths"].as_object().unwrap().keys() {
        let told = path.replace("/v1/registrations/{registrationId}/", "…/");
        assert!(words.contains(&told), "docs/API.md does not tell of {path}");
    }
}
