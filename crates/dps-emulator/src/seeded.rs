//! Numbers and names that look like chance, and are the same in every build and run.

/// The finaliser of splitmix64: a bijection that scatters well.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Looks like a version-4 GUID, and is always the same for the same input.
pub(crate) fn guid(seed: u64, number: u64) -> String {
    let (high, low) = (mix(seed ^ number.rotate_left(17)), mix(seed.rotate_left(32) ^ number));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0xFFF,
        0x8000 | ((low >> 48) & 0x3FFF),
        low & 0xFFFF_FFFF_FFFF
    )
}
