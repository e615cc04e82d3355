//! The tenants' file: a CSV with a header line.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use proxy_core::ids::TenantName;
use storm_sim::{BootCurve, Tenant};

use crate::rows::{Cells, Csv, Header, Row, Unreadable};

/// Bytes of one row.
const ROW_BYTES_MAX: usize = 4096;
/// Bytes of the whole file.
const FILE_BYTES_MAX: u64 = 16 << 20;

const COLUMNS: [&str; 6] =
    ["tenant", "devices", "boot_seconds", "begins_after_seconds", "dedicated_instances", "weight"];

/// Reads the file. Tenants without `boot_seconds` come back as `boot` says.
///
/// The error says where it is wrong and what is expected.
pub(super) fn read(path: &Path, boot: BootCurve) -> Result<Vec<Tenant>, String> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = read().map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&bytes, boot).map_err(|what| format!("{}: {what}", path.display()))
}

fn parse(bytes: &[u8], boot: BootCurve) -> Result<Vec<Tenant>, String> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("the file exceeds {FILE_BYTES_MAX} bytes"));
    }
    let mut csv = Csv::new(ROW_BYTES_MAX);
    csv.push(bytes);
    csv.end();
    let expected = format!("expected a header line such as tenant,devices and of {}", COLUMNS.join(", "));
    let at = |line: u64| move |what: String| format!("line {line}: {what}");
    let readable = |content: Result<Vec<String>, Unreadable>| {
        content.map_err(|fault| fault.in_words(ROW_BYTES_MAX, "the bound of this file"))
    };
    let Some(Row { line, content }) = csv.next() else { return Err(format!("the file is empty; {expected}")) };
    let header = readable(content).and_then(|names| Header::new(names, &COLUMNS, 2));
    let header = header.map_err(|what| at(line)(format!("{what}; {expected}")))?;
    let mut tenants = Vec::new();
    while let Some(Row { line, content }) = csv.next() {
        let cells = readable(content).and_then(|row| header.cells(row));
        tenants.push(cells.and_then(|cells| tenant(&cells, boot)).map_err(at(line))?);
    }
    if tenants.is_empty() { Err("the file has a header and no tenant".to_owned()) } else { Ok(tenants) }
}

fn tenant(cells: &Cells, boot: BootCurve) -> Result<Tenant, String> {
    let whole = |name: &str, bounds: std::ops::RangeInclusive<u32>| {
        let number = |text: &str| {
            text.parse().ok().filter(|number| bounds.contains(number)).ok_or_else(|| {
                format!("{name} is {text:?}; expected a whole number from {} to {}", bounds.start(), bounds.end())
            })
        };
        cells.get(name).map(number).transpose()
    };
    let name = cells.get("tenant").ok_or("tenant is empty")?;
    Ok(Tenant {
        name: TenantName::parse(name).map_err(|error| format!("tenant is {name:?}; {error}"))?,
        devices: whole("devices", 1..=50_000_000)?.ok_or("devices is empty")?,
        boot: whole("boot_seconds", 0..=2_592_000)?
            .map_or(boot, |seconds| BootCurve::Within(Duration::from_secs(seconds.into()))),
        begins_after: Duration::from_secs(whole("begins_after_seconds", 0..=2_592_000)?.unwrap_or(0).into()),
        dedicated_instances: whole("dedicated_instances", 0..=1_000)?.unwrap_or(0),
        weight: whole("weight", 1..=1_000)?.unwrap_or(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootCurve = BootCurve::Ramp(Duration::from_secs(9));

    #[test]
    fn columns_may_come_in_any_order_and_be_left_out() {
        let text = "devices,tenant,weight,boot_seconds\n5,a,,30\n7, b ,3,\n";
        let tenants = parse(text.as_bytes(), BOOT).unwrap();
        let boots: Vec<BootCurve> = tenants.iter().map(|tenant| tenant.boot).collect();
        assert_eq!(boots, [BootCurve::Within(Duration::from_secs(30)), BOOT]);
        assert_eq!((tenants[1].name.as_str(), tenants[1].devices, tenants[1].weight), ("b", 7, 3));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("tenant,devices\na,many\n", "line 2: devices is \"many\"; expected a whole number from 1 to 50000000"),
            ("tenant,devices\na,1\nb,0\n", "line 3: devices is \"0\""),
            ("tenant,devices\na,1\n\n\"b\nc\",1\nd,0\n", "line 4: tenant is"),
            ("tenant,device\na,1\n", "line 1: it has something else; expected a header line"),
            ("tenant\na\n", "line 1: devices is missing; expected a header line"),
            ("\n", "the file is empty"),
            ("tenant,devices\n", "the file has a header and no tenant"),
            ("tenant,devices\n,1\n", "line 2: tenant is empty"),
        ] {
            for end in ["\n", "\r\n", "\r"] {
                let error = parse(text.replace('\n', end).as_bytes(), BOOT).unwrap_err();
                assert!(error.starts_with(said), "{end:?}: {error}");
            }
        }
    }
}
