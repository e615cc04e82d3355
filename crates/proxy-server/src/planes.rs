//! What the three planes answer. Each has its own routes and its own kind of token.
//!
//! Invariant: handlers extract, convert, call the gateway once, convert.

pub mod backend;
pub mod bearer;
pub mod changes;
pub mod device;
pub mod import;
pub mod lists;
pub mod operator;
mod tenants;

use crate::http::routes::Routes;
use crate::plane::Plane;

/// What a plane answers.
#[must_use]
pub const fn routes(plane: Plane) -> Routes {
    match plane {
        Plane::Device => device::ROUTES,
        Plane::Backend => backend::ROUTES,
        Plane::Operator => operator::ROUTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_route_and_never_the_path() {
        for (plane, path, label) in [
            (Plane::Device, "/v1/provision", "/v1/provision"),
            (Plane::Device, "/v1/provision/x", "unmatched"),
            (Plane::Backend, "/v1/devices/sn-1/assignment", "/v1/devices/{deviceId}/assignment"),
            (Plane::Backend, "/v1/devices//assignment", "unmatched"),
            (Plane::Operator, "/v1/registrations/import", "/v1/registrations/import"),
            (Plane::Operator, "/v1/registrations/sn-1", "/v1/registrations/{registrationId}"),
            (Plane::Operator, "/v1/registrations/sn-1/block", "/v1/registrations/{registrationId}/{action}"),
            (Plane::Operator, "/v1/devices/sn-1/assignment", "unmatched"),
        ] {
            assert_eq!(routes(plane).route(path), label, "{path}");
        }
    }
}
