//! What the three planes answer. Each has its own routes and its own kind of token.
//!
//! Invariant: handlers extract, convert, call the gateway once, convert.

pub mod backend;
pub mod bearer;
pub mod changes;
pub mod device;
pub mod import;
pub mod lists;
pub mod openapi;
pub mod operator;
mod tenants;

use utoipa::OpenApi as _;

use crate::api;
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

/// The OpenAPI document of all planes, as the sources say it. Kept in `docs/openapi.json`, from where it is served ([`openapi::TEXT`]); the
/// example `openapi` of this crate renews that file.
///
/// # Panics
/// If it cannot be written as JSON, which depends on nothing but the sources.
#[must_use]
pub fn document() -> String {
    let planes = [
        device::Described::openapi(),
        backend::Described::openapi(),
        operator::Described::openapi(),
        openapi::Described::openapi(),
    ];
    api::document::text(planes).expect("the document has string keys only")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_kept_document_is_what_the_sources_say() {
        assert!(
            document() == openapi::TEXT,
            "docs/openapi.json is not what the sources say of the API. If the change is meant, renew the file: \
             cargo run -p proxy-server --example openapi > docs/openapi.json"
        );
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let document: Value = serde_json::from_str(&document()).unwrap();
        for plane in [Plane::Device, Plane::Backend, Plane::Operator] {
            let described = document["paths"].as_object().unwrap().iter().filter(|(_, operations)| {
                let mut operations = operations.as_object().unwrap().values();
                operations.any(|operation| operation["tags"].as_array().unwrap().contains(&plane.as_str().into()))
            });
            let labels: BTreeSet<&str> = described.map(|(path, _)| routes(plane).route(path)).collect();
            assert_eq!(labels, routes(plane).paths.iter().copied().collect(), "{}", plane.as_str());
        }
    }

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
