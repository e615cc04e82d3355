//! The configuration as an operator meets it: whole files in, key paths and words out.

use std::path::Path;
use std::time::Duration;

use super::reader::Document;
use super::*;

mod cases;
mod schema;
mod watching;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";
/// Self-signed, for tests only, valid until 2126.
const CERT: &str = "-----BEGIN CERTIFICATE-----
MIIBujCCAV+gAwIBAgIUNKrVAENDE+NSyNqaliaJoZdhiZIwCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVcHJvdmlzaW9uLmV4YW1wbGUuY29tMCAXDTI2MTEyNDAzMzY1
MloYDzIxMjYxMDMxMDMzNjUyWjAgMR4wHAYDVQQDDBVwcm92aXNpb24uZXhhbXBs
ZS5jb20wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASWaI08ilewvu6R6ZRFRAMS
f2YeQsR5Oghn91bAgChyu83OlJVoKNYnSVKjw1tOMqHwqgRx/AtcsPTcP1OaufMI
o3UwczAdBgNVHQ4EFgQUD8g9Mx1lSDXIk9tDzGYM6xkICbowHwYDVR0jBBgwFoAU
D8g9Mx1lSDXIk9tDzGYM6xkICbowDwYDVR0TAQH/BAUwAwEB/zAgBgNVHREEGTAX
ghVwcm92aXNpb24uZXhhbXBsZS5jb20wCgYIKoZIzj0EAwIDSQAwRgIhAMnvxBKr
OrqiR5SX1nERXVTKu2sk5z9U7Fp2CuiMnoZdAiEA1N8Ww5J4KgxM940b6VwBEBxr
s33a68wUhHE8e+3keoI=
-----END CERTIFICATE-----
";
const CERT_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgNL2wevZTwhKLvfiQ
z9lxqCAtY/ZpYZuk8UBY40IZD4ahRANCAASWaI08ilewvu6R6ZRFRAMSf2YeQsR5
Oghn91bAgChyu83OlJVoKNYnSVKjw1tOMqHwqgRx/AtcsPTcP1OaufMI
-----END PRIVATE KEY-----
";
const UNRELATED_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgBYSL2Q048mROeCOC
YjmSNfViLMd1NNNXKJ3pDv8Q/bChRANCAARWlEh53JdKa3ZSJ9UEO/pfUGE/F/Ea
jNr6qItpJik8+QTXewl6loiW59BO0TAvsCkzn4VrrVW2yJonqRmNHHZp
-----END PRIVATE KEY-----
";

/// The least that passes, in three parts that cases add to.
const DEVICE: &str = "[device]\nhost_name = \"p.example.com\"\ntls = \"off\"\n";
const INSTANCE: &str = "[instances.eu-1]\nid_scope = \"0ne000AB12C\"\n";
const ENROLLMENT: &str = "[enrollments.plant]\ngroup_key_file = \"key\"\n";

/// A directory with every file that the tests refer to.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(directory.path().join("secrets")).unwrap();
        for (name, content) in [
            ("key", KEY),
            ("other-key", OTHER_KEY),
            ("token-1", "token-one-0123456789\n"),
            ("token-2", "token-two-0123456789"),
            ("short", "abc"),
            ("empty", "\n"),
            ("cert", CERT),
            ("cert-key", CERT_KEY),
            ("unrelated-key", UNRELATED_KEY),
            ("secrets/device-tls.crt", CERT),
            ("secrets/device-tls.key", CERT_KEY),
            ("secrets/backend-orders", "backend-orders-0123456789"),
            ("secrets/operator-oncall", "operator-oncall-0123456789"),
            ("secrets/operator-prometheus", "operator-prometheus-0123456789"),
            ("secrets/plant-group-key", KEY),
            ("secrets/depot-group-key", KEY),
            ("secrets/depot-group-key-eu-2", OTHER_KEY),
            ("secrets/depot-fleet-token", "depot-fleet-token-0123456789"),
        ] {
            directory.write(name, content);
        }
        directory
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        path
    }

    fn load(&self, text: &str, env: &[(&str, &str)]) -> Result<Loaded, Problems> {
        let path = self.write("dps-proxy.toml", text);
        load(&path, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }
}

fn least() -> String {
    format!("{DEVICE}{INSTANCE}{ENROLLMENT}")
}

fn keys(problems: &[Problem]) -> Vec<&str> {
    let mut keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    keys.sort_unstable();
    keys
}

fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/config/dps-proxy.toml");
    std::fs::read_to_string(path).unwrap()
}
