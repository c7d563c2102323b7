//! The OpenAPI document (3.1): from the handlers and types, what all operations have in common, and the schemas of messages.

use serde_json::{Value, json};
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::{Object, ObjectBuilder, OpenApi, Ref, RefOr, Schema};

/// Schemas of messages, which are kept beside their documentation and tested against the types.
const MESSAGES: &str = include_str!("../../../docs/schemas/request.json");
/// Those of its parts that operations take, and what they are called here.
const PARTS: [(&str, &str); 6] = [
    ("spec", "VolumeSpec"),
    ("chunker", "Chunker"),
    ("schedule", "Schedule"),
    ("retention", "RetentionSpec"),
    ("rate", "Rate"),
    ("target", "TargetEntry"),
];

fn id_of(kind: SchemaType) -> Object {
    ObjectBuilder::new().schema_type(kind).pattern(Some("^[0-9a-f]{32}$")).build()
}

/// The schema of an id.
pub fn id() -> Object {
    id_of(SchemaType::new(Type::String))
}

/// The schema of an id that may not be there.
pub fn id_or_none() -> Object {
    id_of(SchemaType::from_iter([Type::String, Type::Null]))
}

/// The schema of what is kept of a volume, if anything is said of that.
pub fn retention_or_none() -> RefOr<Schema> {
    let some = Ref::from_schema_name("RetentionSpec");
    let none = ObjectBuilder::new().schema_type(Type::Null);
    utoipa::openapi::schema::OneOfBuilder::new().item(some).item(none).into()
}

/// The whole document.
pub fn document(api: OpenApi) -> Value {
    let Ok(mut document) = serde_json::to_value(api) else { return Value::Null };
    document["info"] = json!({
        "title": "Strongroom",
        "version": env!("CARGO_PKG_VERSION"),
        "description": "A fleet that backs up block volumes: what there is, how it is, and what is asked of it. What changes something \
                        is sent on like any request: the answer is a run, which says what came of it. Nothing here shows what is in \
                        a volume.",
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    });
    document["security"] = json!([{ "token": [] }]);
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer", "description": "The console's token, or on AWS one of the identity provider." },
    });
    document["components"]["schemas"]["Problem"] = problem();
    for (name, schema) in parts() {
        document["components"]["schemas"][name] = schema;
    }
    widen(&mut document);
    for (status, description) in PROBLEMS {
        document["components"]["responses"][format!("Problem{status}")] = answer(status, description);
    }
    if let Some(paths) = document["paths"].as_object_mut() {
        for (method, operation) in paths.values_mut().filter_map(Value::as_object_mut).flatten() {
            complete(method, operation);
        }
    }
    document
}

/// Says of counts how far they go: utoipa calls them `int64`, which ends at the half.
fn widen(document: &mut Value) {
    match document {
        Value::Object(members) => {
            if members.get("format").is_some_and(|format| format == "int64")
                && members.contains_key("minimum")
            {
                members.remove("format");
                members.entry("maximum").or_insert(json!(u64::MAX));
            }
            members.values_mut().for_each(widen);
        }
        Value::Array(items) => items.iter_mut().for_each(widen),
        _ => {}
    }
}

/// Errors (RFC 9457).
fn problem() -> Value {
    json!({
        "type": "object",
        "description": "What is wrong, and what to do (RFC 9457).",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "const": "about:blank" },
            "title": { "type": "string" },
            "status": { "type": "integer", "minimum": 400, "maximum": 599 },
            "detail": { "type": "string" },
        },
    })
}

/// What messages are made of.
fn parts() -> Vec<(&'static str, Value)> {
    let mut text = MESSAGES.to_owned();
    for (part, name) in PARTS {
        text = text.replace(&format!("#/$defs/{part}\""), &format!("#/components/schemas/{name}\""));
    }
    let messages: Value = serde_json::from_str(&text).unwrap_or_default();
    PARTS.iter().map(|(part, name)| (*name, messages["$defs"][part].clone())).collect()
}

/// Statuses of problems, and what they mean; those of changes alone last.
const PROBLEMS: [(u16, &str); 11] = [
    (400, "What was sent can't be read."),
    (401, "No token was shown, or one that is not of this console."),
    (404, "There is nothing of that name."),
    (422, "What was sent can be read, and can't be done."),
    (500, "What is stored is damaged, or can't be read."),
    (503, "The store can't be reached just now, or an answer takes too long."),
    (403, "This takes an operator."),
    (413, "More was sent than is read."),
    (415, "A body is to be JSON."),
    (429, "More changes are asked for than one console takes in a minute."),
    CONDITIONAL,
];
/// Of what can be asked for on a condition alone.
const CONDITIONAL: (u16, &str) = (412, "What is expected of the volume is not so.");
/// So many of them are answers of reading, too.
const OF_READING: usize = 6;

/// An answer that is a problem.
fn answer(status: u16, description: &str) -> Value {
    let mut answer = json!({
        "description": description,
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    if matches!(status, 429 | 503) {
        let description = "Seconds after which to try again.";
        answer["headers"] =
            json!({ "Retry-After": { "description": description, "schema": { "type": "integer" } } });
    }
    answer
}

/// Adds what operations of one kind have in common.
fn complete(method: &str, operation: &mut Value) {
    let is_reading = method == "get";
    if is_reading {
        if operation["responses"]["200"]["content"].get("application/json").is_some() {
            let description = "Given back as `If-None-Match`, saves what did not change.";
            operation["responses"]["200"]["description"] = json!("As it is now.");
            operation["responses"]["200"]["headers"] =
                json!({ "ETag": { "description": description, "schema": { "type": "string" } } });
            operation["responses"]["304"] = json!({ "description": "It is as it was." });
        }
    } else {
        let key = json!({
            "name": "Idempotency-Key", "in": "header", "required": false, "schema": { "type": "string", "minLength": 1, "maxLength": 128 },
            "description": "What is sent again under its key is the same run.",
        });
        match operation["parameters"].as_array_mut() {
            Some(parameters) => parameters.push(key),
            None => operation["parameters"] = json!([key]),
        }
        if operation["requestBody"].is_object() {
            operation["requestBody"]["required"] = json!(true);
        }
        operation["responses"]["202"]["description"] = json!("It was sent: the run says what becomes of it.");
        operation["responses"]["202"]["headers"] =
            json!({ "Location": { "description": "Where the run is.", "schema": { "type": "string" } } });
    }
    let is_conditional = operation["parameters"]
        .as_array()
        .is_some_and(|parameters| parameters.iter().any(|parameter| parameter["name"] == "If-Match"));
    let problems = if is_reading { &PROBLEMS[..OF_READING] } else { &PROBLEMS[..] };
    let problems = problems.iter().filter(|problem| is_conditional || **problem != CONDITIONAL);
    for (status, _) in problems {
        operation["responses"][status.to_string()] =
            json!({ "$ref": format!("#/components/responses/Problem{status}") });
    }
}
