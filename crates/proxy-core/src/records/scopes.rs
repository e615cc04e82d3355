//! The ID scopes of the instances, on disk before a record can refer to one: an instance whose records belong to one DPS cannot become
//! another one.

use crate::base::Base;
use crate::ids::{IdScope, InstanceName};
use crate::placement::Occupancy;
use crate::settings::Settings;
use crate::store::{CommitError, Expect, Key, ReadError, Store, Stored, Table, Write};

/// The ID scope of an instance, and the one it had when records could last come to refer to it.
pub(crate) struct Scope {
    name: InstanceName,
    configured: IdScope,
    stored: Option<Stored>,
}

impl Scope {
    fn changed(&self) -> bool {
        self.stored.as_ref().is_none_or(|stored| stored.value != self.configured.as_str().as_bytes())
    }

    pub(crate) fn problem(&self, occupancy: &Occupancy) -> Option<String> {
        let (name, filled) = (&self.name, occupancy.filled(&self.name));
        let stored = self.stored.as_ref().filter(|_| filled > 0 && self.changed())?;
        let before = String::from_utf8_lossy(&stored.value);
        Some(format!(
            "instances.{name}.id_scope: {filled} device records refer to this instance with ID scope {before}, so it cannot change; add another instance"
        ))
    }
}

fn scope_key(name: &InstanceName) -> Key {
    Key::new(Table::Meta, format!("id-scope/{name}"))
}

pub(crate) async fn read_scopes(store: &dyn Store, settings: &Settings) -> Result<Vec<Scope>, ReadError> {
    let mut scopes = Vec::with_capacity(settings.instances.len());
    for (name, instance) in &settings.instances {
        let stored = store.get(&scope_key(name)).await?;
        scopes.push(Scope { name: name.clone(), configured: instance.id_scope.clone(), stored });
    }
    Ok(scopes)
}

pub(crate) async fn remember_scopes(base: &Base, scopes: Vec<Scope>) -> Result<(), CommitError> {
    let writes: Vec<Write> = scopes
        .into_iter()
        .filter(Scope::changed)
        .map(|scope| Write::put(scope_key(&scope.name), Expect::Any, scope.configured.as_str().to_owned()))
        .collect();
    if writes.is_empty() { Ok(()) } else { base.commit(writes).await.map(|_| ()) }
}
