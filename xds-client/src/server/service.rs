//! The gRPC side of the control plane: one task a stream, woken by requests and by changes of the map.

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::stream::StreamState;
use super::{Answer, ControlPlane};

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(serve(self.clone(), request, StreamState::handle_sotw, StreamState::poll_sotw)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(serve(self.clone(), request, StreamState::handle_delta, StreamState::poll_delta)))
    }
}

/// Runs one stream: `handle` takes a request in, `poll` gives the next response.
fn serve<Q: Send + 'static, P: Send + 'static>(
    plane: ControlPlane,
    request: Request<Streaming<Q>>,
    handle: fn(&mut StreamState, Q) -> Option<Answer>,
    poll: fn(&mut StreamState, &ControlPlane) -> Option<P>,
) -> ReceiverStream<Result<P, Status>> {
    let (sender, receiver) = mpsc::channel(4);
    let mut changes = plane.changes.subscribe();
    tokio::spawn(async move {
        let mut state = StreamState::new(plane.open_stream());
        let mut requests = request.into_inner();
        loop {
            while let Some(response) = poll(&mut state, &plane) {
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => {
                        if let Some(answer) = handle(&mut state, request) {
                            plane.record(answer);
                        }
                    }
                    Some(Err(_)) | None => return,
                },
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}
