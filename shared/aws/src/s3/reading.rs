//! Reading objects, with the length that the store announces checked before the body is read.

use std::ops::Range;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use strongroom_format::layout::ObjectKey;
use strongroom_store::{ETag, Object, Operation, StoreError, StoreErrorKind, StoreResult};

use super::{ANSWER_TIMEOUT, S3Store, within};

/// What is set aside for a body on its store's word alone; a longer one grows as it comes.
const MAX_RESERVED_BYTES: u64 = 64 * 1024 * 1024;

impl S3Store {
    pub(super) async fn read_whole(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        let answer = self.request(Operation::Get, key, None).await?;
        let length = announced_length(Operation::Get, key, &answer)?;
        if length > max_bytes {
            return Err(StoreError::too_large("get", key, length, max_bytes));
        }
        let etag = etag_of(Operation::Get, key, &answer)?;
        let bytes = read_body(Operation::Get, key, answer.body, length).await?;
        Ok(Object { bytes, etag })
    }

    pub(super) async fn read_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        let (answer, length) = self.request_range(key, &range).await?;
        read_body(Operation::GetRange, key, answer.body, length).await
    }

    pub(super) async fn read_part(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        let (answer, length) = self.request_range(key, &range).await?;
        let etag = etag_of(Operation::GetRange, key, &answer)?;
        let bytes = read_body(Operation::GetRange, key, answer.body, length).await?;
        Ok(Object { bytes, etag })
    }

    /// The answer to a request for a range, and the length of what follows, which is that of the range.
    async fn request_range(
        &self,
        key: &ObjectKey,
        range: &Range<u64>,
    ) -> StoreResult<(GetObjectOutput, u64)> {
        if range.start >= range.end {
            return Err(StoreError::bad_range(key, range, None));
        }
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let answer = self.request(Operation::GetRange, key, Some(header)).await.map_err(|error| {
            // 416, and nothing else that S3 finds wrong with such a request.
            if error.kind == StoreErrorKind::Invalid && error.message.starts_with("InvalidRange") {
                return StoreError::bad_range(key, range, None);
            }
            error
        })?;
        // S3 cuts a range at the end of the object. A store that ignores ranges sends everything.
        let wanted = range.end - range.start;
        let length = announced_length(Operation::GetRange, key, &answer)?;
        if length < wanted {
            let size_bytes = answer.content_range().and_then(|text| text.rsplit_once('/')?.1.parse().ok());
            return Err(StoreError::bad_range(key, range, size_bytes));
        }
        if length > wanted {
            let message = format!("asked for {wanted} bytes, the store sends {length}: it ignores ranges");
            return Err(StoreError::new(StoreErrorKind::Invalid, "get_range", key, message));
        }
        Ok((answer, length))
    }

    async fn request(
        &self,
        operation: Operation,
        key: &ObjectKey,
        range: Option<String>,
    ) -> StoreResult<GetObjectOutput> {
        self.client
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .set_range(range)
            .customize()
            .config_override(within(ANSWER_TIMEOUT))
            .send()
            .await
            .map_err(|error| self.failed(operation, key, error))
    }
}

fn etag_of(operation: Operation, key: &ObjectKey, answer: &GetObjectOutput) -> StoreResult<ETag> {
    answer.e_tag().map(|etag| ETag(etag.to_owned())).ok_or_else(|| {
        let message = "the store gave no etag: use another store";
        StoreError::new(StoreErrorKind::Invalid, operation.name(), key, message)
    })
}

fn announced_length(operation: Operation, key: &ObjectKey, answer: &GetObjectOutput) -> StoreResult<u64> {
    answer.content_length().and_then(|length| u64::try_from(length).ok()).ok_or_else(|| {
        let message = "the store doesn't say how long the object is";
        StoreError::new(StoreErrorKind::Invalid, operation.name(), key, message)
    })
}

/// Reads exactly `length` bytes.
async fn read_body(
    operation: Operation,
    key: &ObjectKey,
    mut body: ByteStream,
    length: u64,
) -> StoreResult<Bytes> {
    let unavailable = |message| StoreError::new(StoreErrorKind::Unavailable, operation.name(), key, message);
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(MAX_RESERVED_BYTES)).unwrap_or(0));
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| unavailable(format!("the answer broke off: {error}")))?;
        if bytes.len() as u64 + piece.len() as u64 > length {
            return Err(unavailable("the answer is longer than it said".to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() as u64 != length {
        return Err(unavailable(format!("the answer ended after {} of {length} bytes", bytes.len())));
    }
    Ok(bytes.into())
}
