//! What goes over the wire: bodies of requests and answers, each a type of its own, and the OpenAPI document that is made of them.
//!
//! Invariants:
//! - No type that is stored, and none of the core, is written for a client: each is converted here, in the file of its subject.
//! - No secret has a member, but for the credential that an enrollment hands to its own device.
//! - A member that says nothing is left out. `null` is said only where the type says so, and read as left out.
//! - A problem has one of the [`problem::Code`]s, and the document names those that an operation may answer with.

pub mod allow_list;
pub mod assignments;
pub mod changes;
pub mod device;
pub mod document;
pub mod instances;
pub mod members;
pub mod names;
pub mod problem;
pub mod refusals;
pub mod registrations;
pub mod service;

/// An enum that is one of the core, variant by variant, and is written in kebab-case.
macro_rules! mirrored {
    ($(#[$attribute:meta])* $name:ident of $core:path { $($(#[$doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $($(#[$doc])* $variant),+
        }

        impl From<$core> for $name {
            fn from(core: $core) -> Self {
                use $core as Core;
                match core {
                    $(Core::$variant => Self::$variant),+
                }
            }
        }
    };
}
use mirrored;
