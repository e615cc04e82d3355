//! The three planes: who calls, and by which listener.

/// Whose listener a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// Devices.
    Device,
    /// Backends.
    Backend,
    /// Operators.
    Operator,
}

impl Plane {
    /// Its name in logs, labels and the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Backend => "backend",
            Self::Operator => "operator",
        }
    }
}
