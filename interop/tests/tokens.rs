//! Our tokens and another author's must be the same bytes.
//!
//! The oracle is azure_iot_sdk's `DeviceKeyTokenSource`. It escapes nothing in `sr`, so it is handed IDs that are escaped already.

use azure_iot_sdk::{DeviceKeyTokenSource, TokenSource};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::DateTime;
use proxy_core::ids::{DeviceId, HubName, RegistrationId};
use proxy_core::sas;
use proxy_core::secret::SymmetricKey;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

/// Many enough that each key length, each ID length and each byte of a signature's alphabet occurs.
const CASES: u64 = 20_000;

const ALPHANUMERIC: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const GRAMMAR: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789._:-";

fn below(random: &mut ChaCha12Rng, bound: usize) -> usize {
    usize::try_from(random.next_u64() % u64::try_from(bound).unwrap()).unwrap()
}

fn text(random: &mut ChaCha12Rng, length: usize, alphabet: &[u8]) -> String {
    (0..length).map(|_| char::from(alphabet[below(random, alphabet.len())])).collect()
}

/// A registration ID.
fn id(random: &mut ChaCha12Rng) -> String {
    let length = below(random, 127);
    text(random, 1, ALPHANUMERIC) + &text(random, length, GRAMMAR) + &text(random, 1, ALPHANUMERIC)
}

fn key(random: &mut ChaCha12Rng) -> SymmetricKey {
    let mut bytes = vec![0; 16 + below(random, 49)];
    random.fill_bytes(&mut bytes);
    SymmetricKey::from_base64(&STANDARD.encode(&bytes)).unwrap()
}

/// The one character of the grammar that needs it.
fn escaped(id: &str) -> String {
    id.replace(':', "%3A")
}

/// What the oracle answers for `sr` = `{left}%2Fdevices%2F{id}`.
fn oracle(left: &str, id: &str, key: &SymmetricKey, expiry_unix_seconds: i64) -> String {
    let source = DeviceKeyTokenSource::new(left, id, &key.expose_base64()).expect("a valid key");
    source.get(&DateTime::from_timestamp(expiry_unix_seconds, 0).expect("an expiry that a calendar has"))
}

#[test]
fn hub_tokens_are_byte_equal_to_the_oracles() {
    let mut random = ChaCha12Rng::seed_from_u64(1);
    for case in 0..CASES {
        let (key, id) = (key(&mut random), id(&mut random));
        let hub = HubName::parse(&format!("hub-{case}.azure-devices.net")).unwrap();
        // Up to the year 9999, and past 2038.
        let expiry = i64::try_from(random.next_u64() % 253_402_300_800).unwrap();
        let ours = sas::hub_token(&key, &hub, &DeviceId::parse(&id).unwrap(), expiry);
        assert_eq!(ours, oracle(hub.as_str(), &escaped(&id), &key, expiry), "case {case}: {id}, se={expiry}");
    }
}

#[test]
fn tokens_of_derived_keys_are_byte_equal_to_the_oracles() {
    let mut random = ChaCha12Rng::seed_from_u64(2);
    for case in 0..CASES {
        let (group_key, id) = (key(&mut random), id(&mut random));
        let device_key = sas::derive_device_key(&group_key, RegistrationId::parse(&id).unwrap().as_str());
        let expiry = i64::try_from(random.next_u64() % 253_402_300_800).unwrap();
        let resource = format!("0ne000AB12C%2Fdevices%2F{}", escaped(&id));
        let ours = sas::device_token(&device_key, &resource, expiry, None);
        assert_eq!(ours, oracle("0ne000AB12C", &escaped(&id), &device_key, expiry), "case {case}: {id}, se={expiry}");
    }
}

#[test]
fn the_oracle_signs_a_derivation_as_we_derive() {
    // A derivation is the signature of an ID; the oracle signs `{sr}\n{se}`. With the group key as its key and that text as the
    // ID, our derived key must be the oracle's `sig`.
    let mut random = ChaCha12Rng::seed_from_u64(3);
    for _ in 0..CASES / 10 {
        let (group_key, id) = (key(&mut random), id(&mut random));
        let derived = sas::derive_device_key(&group_key, &format!("hub%2Fdevices%2F{id}\n1900000000"));
        let token = oracle("hub", &id, &group_key, 1_900_000_000);
        let signature = token.split("&sig=").nth(1).and_then(|rest| rest.split('&').next()).unwrap();
        let decoded = signature.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
        assert_eq!(derived.expose_base64(), decoded);
    }
}

#[test]
fn a_registration_token_published_by_the_oracles_author_is_reproduced() {
    // `test_provision_sas` in azure_iot_sdk 0.8.0, src/provision.rs. Lower-case escapes, and an ID as given.
    let key = SymmetricKey::from_base64("O+H9VTcdJP0Tqkl7bh4nVG0OJNrAataMpuWB54D0VEc=").unwrap();
    let token = sas::device_token(&key, "0ne000EEBBD%2fregistrations%2fFirstDevice", 1_591_921_306, None);
    let published = "SharedAccessSignature sr=0ne000EEBBD%2fregistrations%2fFirstDevice\
                     &sig=hwgBlMB6G2Zg5ZcYtwmtLVKRbifiSCPfUMyscbVWa8o%3D&se=1591921306";
    assert_eq!(token, published);
}

#[test]
fn where_the_oracle_is_wrong_we_differ_from_it() {
    // It leaves `:` bare in a value that is percent-encoded everywhere else; Microsoft's own SDKs escape it.
    let key = SymmetricKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
    let hub = HubName::parse("hub-a.azure-devices.net").unwrap();
    let ours = sas::hub_token(&key, &hub, &DeviceId::parse("line:3").unwrap(), 1_900_000_000);
    assert!(ours.contains("sr=hub-a.azure-devices.net%2Fdevices%2Fline%3A3&"), "{ours}");
    assert_ne!(ours, oracle(hub.as_str(), "line:3", &key, 1_900_000_000));
}
