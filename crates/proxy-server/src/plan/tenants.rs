//! The tenants' file: a CSV with a header line.

use std::path::Path;
use std::time::Duration;

use proxy_core::ids::TenantName;
use storm_sim::{BootCurve, Tenant};

const COLUMNS: [&str; 6] =
    ["tenant", "devices", "boot_seconds", "begins_after_seconds", "dedicated_instances", "weight"];

/// Reads the file. Tenants without `boot_seconds` come back as `boot` says.
///
/// The error says where it is wrong and what is expected.
pub(super) fn read(path: &Path, boot: BootCurve) -> Result<Vec<Tenant>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text, boot).map_err(|what| format!("{}: {what}", path.display()))
}

fn parse(text: &str, boot: BootCurve) -> Result<Vec<Tenant>, String> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let expected = format!("expected a header line such as tenant,devices and of {}", COLUMNS.join(", "));
    if let Some(unknown) = header.iter().find(|column| !COLUMNS.contains(column)) {
        return Err(format!("line 1: \"{unknown}\" is no column; {expected}"));
    }
    for needed in &COLUMNS[..2] {
        if !header.iter().any(|column| column == *needed) {
            return Err(format!("line 1: the column {needed} is missing; {expected}"));
        }
    }
    let rows = reader.records().map(|row| {
        let row = row.map_err(|error| error.to_string())?;
        let line = row.position().map_or(0, csv::Position::line);
        let cell = |name: &str| {
            let index = header.iter().position(|column| column == name)?;
            row.get(index).filter(|cell| !cell.is_empty())
        };
        tenant(cell, boot).map_err(|what| format!("line {line}: {what}"))
    });
    rows.collect()
}

fn tenant<'a>(cell: impl Fn(&str) -> Option<&'a str>, boot: BootCurve) -> Result<Tenant, String> {
    let whole = |name: &str, bounds: std::ops::RangeInclusive<u32>| {
        let number = |text: &str| {
            text.parse().ok().filter(|number| bounds.contains(number)).ok_or_else(|| {
                format!("{name} is \"{text}\"; expected a whole number from {} to {}", bounds.start(), bounds.end())
            })
        };
        cell(name).map(number).transpose()
    };
    let name = cell("tenant").ok_or("tenant is empty")?;
    Ok(Tenant {
        name: TenantName::parse(name).map_err(|error| format!("tenant is \"{name}\"; {error}"))?,
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
        let tenants = parse(text, BOOT).unwrap();
        let boots: Vec<BootCurve> = tenants.iter().map(|tenant| tenant.boot).collect();
        assert_eq!(boots, [BootCurve::Within(Duration::from_secs(30)), BOOT]);
        assert_eq!((tenants[1].name.as_str(), tenants[1].devices, tenants[1].weight), ("b", 7, 3));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("tenant,devices\na,many\n", "line 2: devices is \"many\"; expected a whole number from 1 to 50000000"),
            ("tenant,devices\na,1\nb,0\n", "line 3: devices is \"0\""),
            ("tenant,device\na,1\n", "line 1: \"device\" is no column"),
            ("tenant\na\n", "line 1: the column devices is missing"),
            ("tenant,devices\n,1\n", "line 2: tenant is empty"),
        ] {
            let error = parse(text, BOOT).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
