//! The bytes of images.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use dunlin_model::ErrorCode;
use dunlin_proto::v1::fleet_server::Fleet as _;
use dunlin_proto::{Fault, v1};
use futures_util::StreamExt as _;
use schemars::JsonSchema;
use serde::Serialize;
use tonic::Status;

use super::incoming::{Incoming, unsupported};
use super::route::{OFFSET, Served};
use super::{Rest, json};

/// Media type of bytes that are nothing else.
const BYTES: &str = "application/octet-stream";

/// Bytes under their hash.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Stored {
    /// 64 lower-case hex digits.
    sha256: String,
    /// 0 when they are not there.
    size_bytes: u64,
    /// Has this controller them?
    present: bool,
}

impl From<v1::BlobInfo> for Stored {
    fn from(info: v1::BlobInfo) -> Self {
        let v1::BlobInfo { sha256, size_bytes, present } = info;
        Self { sha256, size_bytes, present }
    }
}

pub(super) fn upload(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        if incoming.media_type() != BYTES {
            return Err(unsupported(incoming.media_type(), BYTES));
        }
        let chunks = incoming.take_body().into_data_stream().map(|piece| match piece {
            Ok(data) => Ok(v1::BlobChunk { data: data.into() }),
            Err(error) => Err(Status::from(Fault::new(
                ErrorCode::InvalidArgument,
                format!("the body broke off: {error}"),
            ))),
        });
        let request = incoming.request(chunks)?;
        let stored = rest.api.store(request).await?;
        Ok(json(StatusCode::CREATED, &Stored::from(stored)))
    })
}

pub(super) fn stat(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let sha256 = incoming.sha256();
        let info = rest.api.stat_blob(incoming.request(v1::StatBlobRequest { sha256 })?).await?.into_inner();
        Ok(json(StatusCode::OK, &Stored::from(info)))
    })
}

pub(super) fn download(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let offset = incoming.number(&OFFSET)?.unwrap_or(0);
        let ask = v1::DownloadBlobRequest { sha256: incoming.sha256(), offset };
        let chunks = rest.api.download_blob(incoming.request(ask)?).await?.into_inner();
        let pieces = chunks.map(|chunk| chunk.map(|chunk| chunk.data));
        let kind = HeaderValue::from_static(BYTES);
        let response: Response = ([(header::CONTENT_TYPE, kind)], Body::from_stream(pieces)).into_response();
        Ok(response)
    })
}
