//! Files of certificates and keys: reading PEM, and what there is to say about a chain before it is served.

pub(crate) mod certificate;
pub(crate) mod pem;
