//! The part of the fleet API an agent uses, with lines that break and bytes that rot.

use std::collections::BTreeMap;
use std::pin::Pin;

use dunlin_model::ErrorCode;
use dunlin_proto::v1::fleet_server::Fleet;
use dunlin_proto::{Fault, v1};
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, Streaming};

use super::fake::Fake;

/// Bytes in one chunk.
const CHUNK_BYTES: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Blobs {
    pub(super) kept: BTreeMap<String, Vec<u8>>,
    /// Downloads that break after so many chunks, in order.
    pub(super) breaks: Vec<usize>,
    /// Offsets asked for.
    pub(super) asked: Vec<u64>,
}

type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! unused {
    ($($name:ident($ask:ty) -> $answer:ty;)*) => {$(
        fn $name<'a: 'b, 'b>(
            &'a self,
            _: Request<$ask>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$answer>, Status>> + Send + 'b>>
        where
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented("no agent asks for this")) })
        }
    )*};
}

#[tonic::async_trait]
impl Fleet for Fake {
    type WatchStream = Chunks<v1::WatchEvent>;
    type ConsoleStream = Chunks<v1::ConsoleChunk>;
    type DownloadBlobStream = Chunks<v1::BlobChunk>;

    async fn download_blob(
        &self,
        request: Request<v1::DownloadBlobRequest>,
    ) -> Result<Response<Self::DownloadBlobStream>, Status> {
        let request = request.into_inner();
        let (bytes, breaks) = self.with(|state| {
            let blobs = &mut state.blobs;
            blobs.asked.push(request.offset);
            let nobody = || Fault::new(ErrorCode::NotFound, "no such blob");
            let bytes = blobs.kept.get(&request.sha256).cloned().ok_or_else(nobody)?;
            let breaks = if blobs.breaks.is_empty() { usize::MAX } else { blobs.breaks.remove(0) };
            Ok::<_, Fault>((bytes, breaks))
        })?;
        let rest = &bytes[usize::try_from(request.offset).unwrap()..];
        let mut chunks: Vec<_> = rest
            .chunks(CHUNK_BYTES)
            .take(breaks)
            .map(|data| Ok(v1::BlobChunk { data: data.to_vec() }))
            .collect();
        if chunks.len() < rest.len().div_ceil(CHUNK_BYTES) {
            chunks.push(Err(Status::unavailable("the line broke")));
        }
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        assert_eq!(request.get_ref().kind(), v1::Kind::Image);
        let image = |(sha256, bytes): (&String, &Vec<u8>)| {
            let size_bytes = bytes.len() as u64;
            let spec = v1::ImageSpec { sha256: sha256.clone(), size_bytes, ..v1::ImageSpec::default() };
            let image = v1::Image { spec: Some(spec), ..v1::Image::default() };
            v1::Object { choice: Some(v1::object::Choice::Image(image)) }
        };
        let objects = self.with(|state| state.blobs.kept.iter().map(image).collect());
        Ok(Response::new(v1::ListResponse { objects, ..v1::ListResponse::default() }))
    }

    unused! {
        get(v1::GetRequest) -> v1::Object;
        watch(v1::WatchRequest) -> Self::WatchStream;
        create(v1::CreateRequest) -> v1::Object;
        create_many(v1::CreateManyRequest) -> v1::CreateManyResponse;
        update(v1::UpdateRequest) -> v1::Object;
        patch(v1::PatchRequest) -> v1::Object;
        apply(v1::ApplyRequest) -> v1::Object;
        delete(v1::DeleteRequest) -> v1::Object;
        set_power(v1::SetPowerRequest) -> v1::Object;
        start_task(v1::StartTaskRequest) -> v1::Object;
        cancel(v1::CancelRequest) -> v1::Object;
        decide(v1::DecideRequest) -> v1::Object;
        create_token(v1::CreateTokenRequest) -> v1::CreateTokenResponse;
        list_unmanaged(v1::ListUnmanagedRequest) -> v1::ListUnmanagedResponse;
        adopt(v1::AdoptRequest) -> v1::Object;
        release(v1::ReleaseRequest) -> v1::Object;
        console(Streaming<v1::ConsoleChunk>) -> Self::ConsoleStream;
        upload_blob(Streaming<v1::BlobChunk>) -> v1::BlobInfo;
        stat_blob(v1::StatBlobRequest) -> v1::BlobInfo;
    }
}
