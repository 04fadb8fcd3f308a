//! Files that hold one list of the configuration, each in a file of its own
//! because it changes while the gateway serves.

use super::error::{ConfigError, Place};
use super::tree::{self, Node, Value};
use super::value::{Setting, push};

/// Reads a file with one key and its list, YAML or JSON. `twice` finds entries
/// that cannot stand beside an earlier one, each with a message.
///
/// # Errors
/// Every mistake, at least one, with its place in the file called `name`. A file
/// without a list is one: half of a file that is being written must not read as
/// an empty list, which is `[]`.
pub(super) fn parse<T: Setting>(
    name: &str,
    text: &str,
    key: &str,
    shape: &str,
    twice: impl FnOnce(&[T]) -> Vec<(usize, String)>,
) -> Result<Vec<T>, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let root = match tree::parse(name, text, &mut errors) {
        Ok(root) => root,
        Err(error) => {
            errors.push(error);
            return Err(errors);
        }
    };
    let start = || Place::File {
        name: name.into(),
        line: 1,
        column: 1,
    };
    let place = root.as_ref().map_or_else(start, |root| root.place.clone());
    let entries = match root.map(|root| root.value) {
        Some(Value::Map(entries)) => entries,
        _ => Vec::new(),
    };
    let mut list: Option<&Node> = None;
    for entry in &entries {
        if entry.key != key {
            errors.push(ConfigError {
                place: entry.place.clone(),
                key: Some(entry.key.clone()),
                message: format!("unknown key: {shape}"),
            });
        } else if matches!(entry.node.value, Value::List(_)) {
            list = Some(&entry.node);
        }
    }
    let Some(list) = list else {
        errors.push(ConfigError {
            place,
            key: None,
            message: shape.to_owned(),
        });
        return Err(errors);
    };
    let read = Vec::<T>::read(list, key, &mut errors).unwrap_or_default();
    for (at, message) in twice(&read) {
        push(&mut errors, list, &format!("{key}[{at}]"), message);
    }
    errors.is_empty().then_some(read).ok_or(errors)
}
