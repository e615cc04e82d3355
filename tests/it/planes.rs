//! Three planes, three kinds of token: nobody gets another's plane.

use dps_proxy_tests::gateway::{BACKEND_TOKEN, OPERATOR_TOKEN, Plane, READ_TOKEN};
use dps_proxy_tests::{TestDevice, TestDps, TestGateway};
use reqwest::Method;
use serde_json::json;

#[tokio::test]
async fn no_token_opens_another_plane() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let credential = device.usual_credential();
    let backend = [
        (Method::GET, "/v1/devices/sn-1/assignment"),
        (Method::POST, "/v1/assignments/lookup"),
        (Method::GET, "/v1/assignments/changes"),
        (Method::POST, "/v1/devices/sn-1/assignment/invalidate"),
        (Method::POST, "/v1/hubs/hub.azure-devices.net/invalidate"),
    ];
    let operator = [
        (Method::GET, "/metrics"),
        (Method::GET, "/v1/instances"),
        (Method::GET, "/v1/registrations/sn-1"),
        (Method::DELETE, "/v1/registrations/sn-1"),
        (Method::POST, "/v1/registrations/sn-1/block"),
        (Method::POST, "/v1/registrations/import"),
        (Method::POST, "/v1/config/reload"),
    ];
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let strangers = [
        None,
        Some(String::new()),
        Some(credential),
        bearer(""),
        bearer("wrong"),
        Some(format!("Basic {BACKEND_TOKEN}")),
    ];
    for (plane, paths, others) in [
        (Plane::Backend, &backend[..], vec![OPERATOR_TOKEN, READ_TOKEN]),
        (Plane::Operator, &operator[..], vec![BACKEND_TOKEN]),
    ] {
        for (method, path) in paths {
            for authorization in strangers.iter().cloned().chain(others.iter().map(|token| bearer(token))) {
                let request = gateway.request(plane, method.clone(), path);
                let request =
                    authorization.iter().fold(request, |request, value| request.header("Authorization", value));
                let reply = gateway.send(request).await.problem(401, "unauthorized");
                assert_eq!(reply.header("www-authenticate"), "Bearer", "{method} {path}");
            }
        }
    }
    for token in [BACKEND_TOKEN, OPERATOR_TOKEN, READ_TOKEN] {
        gateway.ask(&device).authorization(format!("Bearer {token}")).send().await.problem(401, "unauthorized");
    }
    // What is another plane's does not even exist here.
    for (plane, path) in [
        (Plane::Device, "/v1/instances"),
        (Plane::Backend, "/metrics"),
        (Plane::Operator, "/v1/devices/a/assignment"),
        (Plane::Device, "/readyz"),
    ] {
        gateway
            .send(gateway.request(plane, Method::GET, path).bearer_auth(OPERATOR_TOKEN))
            .await
            .problem(404, "no-such-path");
    }
}

#[tokio::test]
async fn a_token_that_may_only_look_cannot_act() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    gateway.assigned(&device).await;
    let reader = |method, path| gateway.request(Plane::Operator, method, path).bearer_auth(READ_TOKEN);
    for path in ["/metrics", "/v1/instances", "/v1/registrations/sn-1"] {
        gateway.send(reader(Method::GET, path)).await.ok();
    }
    for (method, path) in [
        (Method::POST, "/v1/registrations/sn-1/block"),
        (Method::POST, "/v1/registrations/sn-1/retry"),
        (Method::DELETE, "/v1/registrations/sn-1"),
        (Method::POST, "/v1/registrations/import"),
        (Method::POST, "/v1/config/reload"),
    ] {
        gateway.send(reader(method, path).json(&json!({}))).await.problem(403, "read-only-token");
    }
    gateway.provision(&device).await.ok();
}

#[tokio::test]
async fn a_rotated_token_works_as_soon_as_its_file_has_changed() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    std::fs::write(gateway.directory().join("backend.token"), "rotated-token-of-the-tests-0123456789").unwrap();
    dps_proxy_tests::eventually("the new token opens the plane", async || {
        let request = gateway.request(Plane::Backend, Method::GET, "/v1/devices/a/assignment");
        gateway.send(request.bearer_auth("rotated-token-of-the-tests-0123456789")).await.status == 404
    })
    .await;
    gateway.backend_get("/v1/devices/a/assignment").await.problem(401, "unauthorized");
}
