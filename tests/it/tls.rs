//! Certificates of our own listeners.

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually, test_ca};
use reqwest::tls::TlsInfo;
use reqwest::{Certificate, Client, Method};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// The certificate that a new connection is shown.
async fn served(gateway: &TestGateway, plane: Plane) -> Vec<u8> {
    let ca = Certificate::from_pem(test_ca().ca_pem().as_bytes()).unwrap();
    let client = Client::builder().no_proxy().tls_certs_only([ca]).tls_info(true).build().unwrap();
    let response = client.get(gateway.url(plane, "/")).send().await.unwrap();
    response.extensions().get::<TlsInfo>().unwrap().peer_certificate().unwrap().to_vec()
}

/// Puts a new certificate into a plane's files, as a certificate manager would, and tells what it is.
fn renew(gateway: &TestGateway, plane: Plane) -> Vec<u8> {
    let leaf = test_ca().issue(["localhost", "127.0.0.1"]).unwrap();
    for (file, text) in [("", &leaf.chain_pem), ("-key", &leaf.key_pem)] {
        std::fs::write(gateway.directory().join(format!("{}{file}.pem", plane.section())), text).unwrap();
    }
    CertificateDer::from_pem_slice(leaf.chain_pem.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn every_plane_speaks_tls_if_it_has_a_certificate() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps);
    let gateway = Plane::ALL.into_iter().fold(builder, dps_proxy_tests::GatewayBuilder::tls).start().await;
    let device = TestDevice::of_fleet("sn-1");
    assert_eq!(gateway.assigned(&device).await.json["assignedHub"], dps.hubs()[0]);
    gateway.backend_get("/v1/devices/sn-1/assignment").await.ok();
    gateway.operator_get("/v1/registrations/sn-1").await.ok();
    let mut events = gateway.changes(None).await;
    events.next().await.unwrap();
    for plane in Plane::ALL {
        let plain = Client::builder().no_proxy().build().unwrap();
        let request = plain.get(format!("http://{}/v1/time", gateway.address(plane)));
        let answered = request.send().await.is_ok_and(|response| response.status().is_success());
        assert!(!answered, "{plane:?} answers plain HTTP");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let gateway = builder.tls(Plane::Device).tls(Plane::Operator).start().await;
    let pid = gateway.pid();
    for plane in [Plane::Device, Plane::Operator] {
        let before = served(&gateway, plane).await;
        let renewed = renew(&gateway, plane);
        assert_ne!(before, renewed);
        eventually("the new certificate is served", async || served(&gateway, plane).await == renewed).await;
    }
    assert_eq!(gateway.pid(), pid);
}

#[tokio::test]
async fn a_configuration_that_is_refused_renews_no_certificate() {
    let (used, other) = (TestDps::start().await, TestDps::start().await);
    let builder = TestGateway::builder().instance("used", &used).instance("other", &other).tls(Plane::Backend);
    let mut gateway = builder.set("instances.other.draining", "true").start().await;
    gateway.provision(&TestDevice::of_fleet("sn-1")).await;
    let before = served(&gateway, Plane::Backend).await;
    let sound = gateway.config().clone();
    // Records refer to it: only the gateway itself can tell, after everything else was found to be right.
    gateway.edit_config(|config| {
        config.remove_table("instances.used").set("instances.other.draining", "false");
    });
    let renewed = renew(&gateway, Plane::Backend);
    let reload = async || gateway.send(gateway.operator(Method::POST, "/v1/config/reload")).await;
    let reply = reload().await.problem(422, "invalid-configuration");
    assert!(reply.json["problems"].to_string().contains("instances.used"), "{}", reply.body);
    assert_eq!(served(&gateway, Plane::Backend).await, before, "what is refused changes nothing");

    gateway.edit_config(|config| *config = sound);
    gateway.send(gateway.operator(Method::POST, "/v1/config/reload")).await.ok();
    assert_eq!(served(&gateway, Plane::Backend).await, renewed);
}
