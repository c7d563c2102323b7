//! What S3's answers mean to a caller of the store.

use std::error::Error;
use std::fmt::Display;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use strongroom_store::{Operation, StoreError, StoreErrorKind};

use super::S3Store;
use crate::errors::{Cause, Failure};

impl S3Store {
    pub(super) fn failed<E>(
        &self,
        operation: Operation,
        key: impl Display,
        error: SdkError<E, HttpResponse>,
    ) -> StoreError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        self.refused(operation, key, &Failure::of(error))
    }

    /// Translates a failure of a whole request, or of one key of a delete.
    pub(super) fn refused(&self, operation: Operation, key: impl Display, failure: &Failure) -> StoreError {
        let (kind, advice) = meaning(operation, failure);
        let advice = match advice {
            Advice::None => String::new(),
            Advice::Text(text) => format!("; {text}"),
            Advice::Permission => format!("; {}", self.permission_advice(operation)),
            Advice::CreateBucket => format!("; bucket {} does not exist: create it first", self.bucket),
            Advice::Region => {
                format!("; bucket {} is not in region {}: set its region", self.bucket, self.region)
            }
        };
        StoreError::new(kind, operation.name(), key, format!("{}{advice}", failure.text))
    }

    fn permission_advice(&self, operation: Operation) -> String {
        let action = match operation {
            Operation::Get | Operation::GetRange => "s3:GetObject",
            Operation::PutIfAbsent | Operation::PutIfMatch => "s3:PutObject",
            Operation::List => "s3:ListBucket",
            Operation::Delete => "s3:DeleteObject",
        };
        let resource = match operation {
            Operation::List => format!("arn:aws:s3:::{}", self.bucket),
            _ => format!("arn:aws:s3:::{}/{}*", self.bucket, self.prefix),
        };
        let missing = match operation {
            // S3 doesn't tell a caller who may not list that an object isn't there.
            Operation::Get | Operation::GetRange => {
                ". Or the object is missing: without s3:ListBucket on the bucket, S3 says 403 and not 404"
            }
            _ => "",
        };
        format!("is {action} allowed on {resource}, and the bucket's KMS key, if it has one?{missing}")
    }
}

enum Advice {
    None,
    Text(&'static str),
    Permission,
    CreateBucket,
    Region,
}

fn meaning(operation: Operation, failure: &Failure) -> (StoreErrorKind, Advice) {
    let Cause::Answered { status, code } = &failure.cause else {
        return match failure.cause {
            Cause::NoCredentials => {
                (StoreErrorKind::Denied, failure.credentials_advice().map_or(Advice::None, Advice::Text))
            }
            Cause::NotSent => (StoreErrorKind::Invalid, Advice::None),
            _ => (StoreErrorKind::Unavailable, Advice::None),
        };
    };
    match (status, code.as_str()) {
        (412, _) => (StoreErrorKind::Conflict, Advice::None),
        // Another conditional write to this name is under way. Who replaces has to read again in any case; who
        // creates a name of its own only has to wait for how that one ends.
        (409, _) if operation == Operation::PutIfMatch && code != "OperationAborted" => {
            (StoreErrorKind::Conflict, Advice::None)
        }
        (409, _) => (StoreErrorKind::Unavailable, Advice::None),
        (_, "NoSuchBucket") => (StoreErrorKind::Invalid, Advice::CreateBucket),
        (404, "NoSuchKey" | "NotFound") => (StoreErrorKind::NotFound, Advice::None),
        (404, _) => (StoreErrorKind::Invalid, Advice::Text("is this the endpoint of an S3 service?")),
        (301 | 307, _) | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            (StoreErrorKind::Invalid, Advice::Region)
        }
        (501, _) | (_, "NotImplemented") => (
            StoreErrorKind::Invalid,
            Advice::Text("this store lacks what Strongroom needs of S3: use another one"),
        ),
        _ if failure.may_pass() => (StoreErrorKind::Unavailable, Advice::None),
        _ if failure.is_denied() => {
            (StoreErrorKind::Denied, failure.credentials_advice().map_or(Advice::Permission, Advice::Text))
        }
        _ => (StoreErrorKind::Invalid, Advice::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(operation: Operation, status: u16, code: &str) -> StoreErrorKind {
        let cause = Cause::Answered { status, code: code.to_owned() };
        meaning(operation, &Failure { cause, text: String::new() }).0
    }

    #[test]
    fn answers_have_the_meanings_of_the_design() {
        use Operation::{Delete, Get, List, PutIfAbsent, PutIfMatch};
        use StoreErrorKind::{Conflict, Denied, Invalid, NotFound, Unavailable};
        for (operation, status, code, expected) in [
            (PutIfAbsent, 412, "PreconditionFailed", Conflict),
            (PutIfMatch, 412, "PreconditionFailed", Conflict),
            (PutIfAbsent, 409, "ConditionalRequestConflict", Unavailable),
            (PutIfMatch, 409, "ConditionalRequestConflict", Conflict),
            (PutIfMatch, 409, "OperationAborted", Unavailable),
            (PutIfMatch, 404, "NoSuchKey", NotFound),
            (Get, 404, "NoSuchKey", NotFound),
            (Get, 404, "", Invalid),
            (Get, 404, "NoSuchBucket", Invalid),
            (PutIfAbsent, 404, "NoSuchBucket", Invalid),
            (Get, 403, "AccessDenied", Denied),
            (Get, 403, "", Denied),
            (List, 400, "ExpiredToken", Denied),
            (List, 403, "RequestTimeTooSkewed", Denied),
            (Delete, 200, "AccessDenied", Denied),
            (Delete, 200, "InternalError", Unavailable),
            (Delete, 200, "SlowDown", Unavailable),
            (PutIfAbsent, 503, "SlowDown", Unavailable),
            (PutIfAbsent, 500, "InternalError", Unavailable),
            (PutIfAbsent, 502, "", Unavailable),
            (PutIfAbsent, 429, "", Unavailable),
            (PutIfAbsent, 400, "RequestTimeout", Unavailable),
            (PutIfAbsent, 400, "BadDigest", Unavailable),
            (PutIfAbsent, 501, "NotImplemented", Invalid),
            (PutIfAbsent, 400, "EntityTooLarge", Invalid),
            (Get, 416, "InvalidRange", Invalid),
            (List, 301, "PermanentRedirect", Invalid),
        ] {
            assert_eq!(kind(operation, status, code), expected, "{operation} {status} {code}");
        }
    }
}
