//! A gRPC service with one method, as generated code would have it: there is no compiler of protocols here.

use std::convert::Infallible;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::{Body, BoxFuture, Bytes, Context, Poll, Service, StdError, http};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

const PATH: &str = "/demo.Greeter/Hello";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Text {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
}

/// Answers with the address that it listens at.
#[derive(Clone)]
pub(crate) struct Greeter(SocketAddr);

impl Greeter {
    /// One that says that it listens there.
    #[allow(dead_code, reason = "who serves it in his own way makes it so")]
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self(address)
    }

    /// Serves on a port of its own, until the task is aborted.
    pub(crate) async fn start() -> std::io::Result<(SocketAddr, JoinHandle<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let serving = tonic::transport::Server::builder()
            .add_service(Self(address))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move { serving.await.expect("it serves") });
        Ok((address, serving))
    }
}

impl tonic::server::NamedService for Greeter {
    const NAME: &'static str = "demo.Greeter";
}

impl tonic::server::UnaryService<Text> for Greeter {
    type Response = Text;
    type Future = BoxFuture<Response<Text>, Status>;

    fn call(&mut self, _: Request<Text>) -> Self::Future {
        let text = self.0.to_string();
        Box::pin(async move { Ok(Response::new(Text { text })) })
    }
}

impl<B> Service<http::Request<B>> for Greeter
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let greeter = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
            Ok(match request.uri().path() {
                PATH => grpc.unary(greeter, request).await,
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// A client over whatever channel.
#[derive(Clone)]
pub(crate) struct Client<T>(tonic::client::Grpc<T>);

impl<T> Client<T>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    pub(crate) fn new(channel: T) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    pub(crate) async fn hello(&mut self, request: Request<Text>) -> Result<String, Status> {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unknown(error.into().to_string()))?;
        let path = http::uri::PathAndQuery::from_static(PATH);
        let codec = ProstCodec::<Text, Text>::default();
        Ok(self.0.unary(request, path, codec).await?.into_inner().text)
    }
}
