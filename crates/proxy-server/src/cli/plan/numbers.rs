//! Numbers as people write them: `3M`, `3_000_000`, `3,000,000`; and quotas by instance.

use storm_sim::INSTANCES_MAX;

/// A whole number from 1 to `most`.
fn count(text: &str, most: u32) -> Result<u32, String> {
    let expected = || format!("expected a whole number from 1 to {most}, such as 3000000, 3_000_000, 3,000,000 or 3M");
    let plain: String = text.trim().chars().filter(|letter| !matches!(letter, '_' | ',')).collect();
    let (digits, unit) = match plain.char_indices().last().filter(|(_, last)| last.is_alphabetic()) {
        Some((at, 'k' | 'K')) => (&plain[..at], 1_000.0),
        Some((at, 'm' | 'M')) => (&plain[..at], 1_000_000.0),
        Some(_) => return Err(expected()),
        None => (plain.as_str(), 1.0),
    };
    let written = digits.chars().all(|letter| letter.is_ascii_digit() || letter == '.');
    let number = digits.parse::<f64>().ok().filter(|_| written).map(|number| number * unit).ok_or_else(expected)?;
    if number.fract() != 0.0 || !(1.0..=f64::from(most)).contains(&number) {
        return Err(expected());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is whole, and within the bounds of a u32"
    )]
    let number = number as u32;
    Ok(number)
}

pub(super) fn devices(text: &str) -> Result<u32, String> {
    count(text, 50_000_000)
}

/// `1000` for all instances that are not named, or `NAME=600` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) instance: Option<String>,
    pub(super) per_minute: u32,
}

pub(super) fn quota(text: &str) -> Result<Quota, String> {
    let (instance, number) = match text.split_once('=') {
        Some((name, number)) if !name.trim().is_empty() => (Some(name.trim().to_owned()), number),
        Some(_) => return Err("expected a name before the =, such as eu-1=600".to_owned()),
        None => (None, text),
    };
    let per_minute = count(number, 100_000)
        .map_err(|_| "expected registrations per minute from 1 to 100000, such as 1000 or eu-1=600".to_owned())?;
    Ok(Quota { instance, per_minute })
}

/// The quotas that were given: of the instances that are named, in order, and of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quotas {
    pub(super) named: Vec<(String, u32)>,
    pub(super) others: u32,
}

impl Quotas {
    pub(super) fn of(given: &[Quota]) -> Result<Self, String> {
        let (mut named, mut others) = (Vec::<(String, u32)>::new(), None);
        for Quota { instance, per_minute } in given {
            match instance {
                Some(name) if named.iter().any(|(other, _)| other == name) => {
                    return Err(format!("--quota names {name} twice"));
                }
                Some(name) => named.push((name.clone(), *per_minute)),
                None if others.is_some() => {
                    return Err(
                        "--quota has two numbers without a name; one counts for all instances that are not named"
                            .to_owned(),
                    );
                }
                None => others = Some(*per_minute),
            }
        }
        if named.len() > usize::from(INSTANCES_MAX) {
            return Err(format!("--quota names {} instances; a simulation takes at most {INSTANCES_MAX}", named.len()));
        }
        Ok(Self { named, others: others.unwrap_or(1000) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, number) in [
            ("3000000", 3_000_000),
            ("3M", 3_000_000),
            ("3_000_000", 3_000_000),
            ("3,000,000", 3_000_000),
            ("2.5m", 2_500_000),
            ("40k", 40_000),
            ("1", 1),
        ] {
            assert_eq!(devices(text), Ok(number), "{text}");
        }
        for text in ["", "M", "0", "-3", "3.5", "3 M x", "1e6", "51M", "3MM", "inf"] {
            let error = devices(text).unwrap_err();
            assert!(error.contains("3M"), "{text}: {error}");
        }
    }

    #[test]
    fn quotas_are_for_one_instance_or_for_the_others() {
        let given = |texts: &[&str]| Quotas::of(&texts.iter().map(|text| quota(text).unwrap()).collect::<Vec<_>>());
        let named = vec![("eu-1".to_owned(), 600), ("eu-2".to_owned(), 200)];
        assert_eq!(given(&["eu-1=600", "800", "eu-2=200"]), Ok(Quotas { named, others: 800 }));
        assert_eq!(given(&[]), Ok(Quotas { named: Vec::new(), others: 1000 }));
        assert!(given(&["a=1", "a=2"]).unwrap_err().contains("a twice"));
        assert!(given(&["1", "2"]).is_err());
        assert!(quota("=3").is_err() && quota("eu=none").is_err());
    }
}
