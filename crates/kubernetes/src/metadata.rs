//! Object metadata. `managedFields`, its largest part, is skipped while decoding.

use std::collections::BTreeMap;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Deserializer};

/// The decoded fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    deletion_timestamp: Option<Time>,
}

/// Decodes an object's metadata; for serde's `deserialize_with`.
pub(crate) fn slim_metadata<'de, D: Deserializer<'de>>(d: D) -> Result<ObjectMeta, D::Error> {
    let SlimMetadata {
        name,
        namespace,
        uid,
        resource_version,
        labels,
        annotations,
        deletion_timestamp,
    } = SlimMetadata::deserialize(d)?;
    Ok(ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        labels,
        annotations,
        deletion_timestamp,
        ..ObjectMeta::default()
    })
}

/// Implements `kube::Resource` for a type of an API group, of which the core group has no name. Of
/// a type marked `metadata_only`, the API server sends only the metadata.
macro_rules! api_object {
    ($type:ty, $group:literal, $kind:literal, $plural:literal, $scope:ty) => {
        $crate::metadata::api_object!($type, $group, $kind, $plural, $scope, false);
    };
    ($type:ty, $group:literal, $kind:literal, $plural:literal, $scope:ty, metadata_only) => {
        $crate::metadata::api_object!($type, $group, $kind, $plural, $scope, true);
    };
    ($type:ty, $group:literal, $kind:literal, $plural:literal, $scope:ty, $metadata:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn metadata_api() -> bool {
                $metadata
            }

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &$crate::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut $crate::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

pub(crate) use api_object;
