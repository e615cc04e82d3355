//! A device that knows no DPS: it asks dps-proxy for its hub over HTTP, then connects to that hub with azure_iot_sdk.
//!
//! ```text
//! cargo run --example device -- https://provision.example.com sn-0001 device.key [ca.pem]
//! ```
//!
//! `device.key` holds the device's own symmetric key in base64; the token's audience is the host name of the URL. The hub part needs
//! a real hub (MQTT over TLS on port 8883, trusted by the system's roots); `ASK_ONLY=1` ends before it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use azure_iot_sdk::{DeviceKeyTokenSource, IoTHubClient, Message};
use proxy_core::sas;
use proxy_core::secret::SymmetricKey;
use reqwest::{Certificate, Client, StatusCode, Url};
use serde_json::{Value, json};

/// A token is made for one request; an hour forgives a device whose clock is off.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

struct Assignment {
    hub: String,
    device_id: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(hardware_id), Some(key_file)) = (arguments.next(), arguments.next(), arguments.next()) else {
        bail!("usage: device PROXY-URL HARDWARE-ID KEY-FILE [CA-FILE]");
    };
    let key_text = std::fs::read_to_string(&key_file).with_context(|| key_file.clone())?;
    let key = SymmetricKey::from_base64(&key_text).with_context(|| key_file)?;
    let mut client = Client::builder().timeout(Duration::from_secs(90));
    if let Some(file) = arguments.next() {
        let pem = std::fs::read(&file).with_context(|| file)?;
        client = client.tls_certs_merge(Certificate::from_pem_bundle(&pem)?);
    }

    let assignment = ask(&client.build()?, &Url::parse(&url)?, &hardware_id, &key).await?;
    println!("{} belongs to {}", assignment.device_id, assignment.hub);
    if std::env::var_os("ASK_ONLY").is_some() {
        return Ok(());
    }
    greet(assignment, &key).await
}

/// Repeats one request until the proxy knows the hub, waiting as long as it is told to.
async fn ask(client: &Client, proxy: &Url, hardware_id: &str, key: &SymmetricKey) -> anyhow::Result<Assignment> {
    let audience = proxy.host_str().context("the URL names no host")?;
    let registration_id = hardware_id.to_ascii_lowercase();
    // The grammar of hardware IDs needs one escape only.
    let resource = format!("{audience}%2Fregistrations%2F{}", registration_id.replace(':', "%3A"));
    loop {
        let expiry = SystemTime::now().duration_since(UNIX_EPOCH)? + TOKEN_LIFETIME;
        let token = sas::device_token(key, &resource, expiry.as_secs().try_into()?, None);
        let answer = client
            .post(proxy.join("/v1/provision")?)
            .header("Authorization", token)
            .header("Prefer", "wait=10")
            .json(&json!({ "hardwareId": hardware_id }))
            .send()
            .await?;
        let status = answer.status();
        let retry_after = answer.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.parse().ok());
        let body: Value = answer.json().await.context("the answer is not JSON")?;
        match status {
            StatusCode::OK => {
                let text =
                    |name: &str| body[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {body}"));
                return Ok(Assignment { hub: text("assignedHub")?, device_id: text("deviceId")? });
            }
            StatusCode::ACCEPTED | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let seconds = retry_after.context("no Retry-After in whole seconds")?;
                println!("{status}: place {}, asking again in {seconds} s", body["position"]);
                tokio::time::sleep(Duration::from_secs(seconds)).await;
            }
            _ => bail!("{status}: {body}"),
        }
    }
}

/// Connects to the assigned hub and sends one message.
async fn greet(assignment: Assignment, key: &SymmetricKey) -> anyhow::Result<()> {
    let Assignment { hub, device_id } = assignment;
    let Ok(source) = DeviceKeyTokenSource::new(&hub, &device_id, &key.expose_base64()) else {
        bail!("azure_iot_sdk refuses the key");
    };
    // Its error type is not `Send + Sync`, which `anyhow` asks for.
    let mut client =
        IoTHubClient::new(&hub, device_id, source).await.map_err(|error| anyhow::anyhow!("{hub}: {error}"))?;
    let message = Message::new(br#"{"hello":"hub"}"#.to_vec());
    client.send_message(message).await.map_err(|error| anyhow::anyhow!("{hub}: {error}"))?;
    println!("sent one message to {hub}");
    Ok(())
}
