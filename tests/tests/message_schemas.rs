//! docs/messages.md, docs/schemas and the types agree: every example is read by both, written back as it was, and refused by
//! both or by neither, however it is spoiled.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};
use strongroom_fleet::message::{CommitMessage, Message, Request, RunMessage, Wanted};

/// The kinds of messages, with a field that only they have.
const KINDS: [(&str, &str); 3] = [("request", "request"), ("run", "run"), ("commit", "session")];

fn examples() -> Vec<Value> {
    let reference = include_str!("../../docs/messages.md");
    let lines = reference.lines().filter(|line| line.starts_with("{\"version\""));
    lines.map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn kind_of(message: &Value) -> usize {
    KINDS.iter().position(|(_, field)| message.get(field).is_some()).expect("an example is of some kind")
}

/// What the types make of a message: written back, or the reason why it is refused.
fn read(kind: usize, text: &str) -> Result<String, String> {
    match kind {
        0 => Request::from_json(text)
            .and_then(|request| request.check_key().map(|()| request.to_json()))
            .map_err(|error| error.to_string()),
        1 => RunMessage::from_json(text).map(|it| it.to_json()).map_err(|error| error.to_string()),
        _ => CommitMessage::from_json(text).map(|it| it.to_json()).map_err(|error| error.to_string()),
    }
}

struct Checked {
    schemas: Schemas,
    indexes: Vec<SchemaIndex>,
}

impl Checked {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let indexes = KINDS
            .map(|(name, _)| {
                let text = match name {
                    "request" => include_str!("../../docs/schemas/request.json"),
                    "run" => include_str!("../../docs/schemas/run.json"),
                    _ => include_str!("../../docs/schemas/commit.json"),
                };
                let place = format!("https://schemas.invalid/{name}.json");
                compiler.add_resource(&place, serde_json::from_str(text).unwrap()).unwrap();
                compiler.compile(&place, &mut schemas).unwrap()
            })
            .to_vec();
        Self { schemas, indexes }
    }

    fn takes(&self, kind: usize, message: &Value) -> bool {
        self.schemas.validate(message, self.indexes[kind]).is_ok()
    }
}

/// Everything that is in a message, as JSON pointers.
fn places(value: &Value, here: &str, all: &mut Vec<String>) {
    all.push(here.to_owned());
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| places(member, &format!("{here}/{name}"), all));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| places(item, &format!("{here}/{at}"), all));
        }
        _ => {}
    }
}

/// A message, spoiled in every place in every way.
fn spoiled(message: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    places(message, "", &mut all);
    let mut variants = Vec::new();
    for place in all {
        let mut with = |change: &dyn Fn(&mut Value)| {
            let mut variant = message.clone();
            change(variant.pointer_mut(&place).unwrap());
            variants.push(variant);
        };
        let value = message.pointer(&place).unwrap();
        for other in [json!(null), json!(true), json!(-1), json!(1.5), json!([]), json!({}), json!(["x", 1])]
        {
            with(&|it| *it = other.clone());
        }
        match value {
            Value::Object(members) => {
                with(&|it| it["surprise"] = json!(1));
                for name in members.keys() {
                    with(&|it| drop(it.as_object_mut().unwrap().remove(name)));
                }
            }
            Value::Array(_) => {
                with(&|it| it.as_array_mut().unwrap().push(json!("x")));
                with(&|it| drop(it.as_array_mut().unwrap().pop()));
            }
            Value::Number(_) => with(&|it| *it = json!("1")),
            Value::String(_) => with(&|it| *it = json!(7)),
            _ => {}
        }
    }
    variants
}

#[test]
fn schemas_and_types_take_and_refuse_the_same() {
    let schemas = Checked::new();
    let (mut refused, mut taken) = (0, 0);
    for example in examples() {
        let kind = kind_of(&example);
        let written = read(kind, &example.to_string()).expect("an example is read");
        assert_eq!(read(kind, &written).unwrap(), written, "read again, it is the same");
        let written: Value = serde_json::from_str(&written).unwrap();
        assert!(schemas.takes(kind, &example), "{example}");
        assert!(schemas.takes(kind, &written), "{written}");
        if let Ok(Wanted::VolumePut { volume, spec, .. }) =
            Request::from_json(&example.to_string()).map(|request| request.request)
        {
            assert_eq!(spec.check(&volume), Ok(()));
        }
        for message in spoiled(&example) {
            let read = read(kind, &message.to_string());
            assert_eq!(schemas.takes(kind, &message), read.is_ok(), "{message}: {read:?}");
            *if read.is_ok() { &mut taken } else { &mut refused } += 1;
        }
    }
    println!("{refused} spoiled messages refused, {taken} taken");
    assert!(refused > 1000 && taken > 50, "{refused}, {taken}");
}

#[test]
fn every_kind_of_request_has_an_example_and_every_field_is_in_one() {
    let schema: Value = serde_json::from_str(include_str!("../../docs/schemas/request.json")).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let examples = examples();
    for variant in schema["properties"]["request"]["oneOf"].as_array().unwrap() {
        let kind = &variant["properties"]["type"]["const"];
        let of_kind: Vec<_> = examples.iter().filter(|one| one["request"]["type"] == *kind).collect();
        assert!(!of_kind.is_empty(), "no example of {kind}");
    }
    let shown: BTreeSet<String> = examples
        .iter()
        .flat_map(|example| {
            let mut all = Vec::new();
            places(example, "", &mut all);
            all.into_iter().filter_map(|place| place.rsplit('/').next().map(str::to_owned))
        })
        .collect();
    let variants = schema["properties"]["request"]["oneOf"].as_array().unwrap().iter();
    let defined = schema["$defs"].as_object().unwrap().values();
    let fields = variants.chain(defined).filter_map(|it| it.get("properties")).flat_map(names);
    let missing: Vec<String> = fields.filter(|field| !shown.contains(field)).collect();
    assert!(missing.is_empty(), "no example shows {missing:?}");
}
