//! One connection from the server's side, from its first byte to its last.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::handshake::shake_hands;
use super::intake::Intake;
use super::keeper::{LINGER, keep};
use super::reader::Reader;
use super::running::Running;
use super::session::{End, Session, State};
use super::shared::{Phase, Shared};
use super::usage::Usage;
use super::writer::Writer;
use crate::protocol::{Batch, FrameReader, Outbox, WireError, encode_connection_error};
use crate::sync::{Mutex, event};
use crate::transport::{ConnectionSlot, IdleWriter, ReachedCap, Stream};

/// How long an evicted connection that is not told why may still write.
const EVICTION_TIMEOUT: Duration = Duration::from_millis(10);

/// Serves one connection until it ends. Dropping the future drops its handlers.
pub(super) async fn run(
    server: Arc<Shared>,
    stream: Stream,
    mut phases: watch::Receiver<Phase>,
    slot: ConnectionSlot<Usage>,
) {
    let usage = slot.connection();
    let limit = server.settings.handshake_timeout;
    let welcome = async {
        // TLS counts against the same limit: a peer that is slow at it costs its own place alone.
        let mut stream = stream.establish().await?;
        let (read, client) = shake_hands(&server, &mut stream, None).await?;
        io::Result::Ok((stream, read, client))
    };
    let welcomed = tokio::select! {
        welcomed = timeout(limit, welcome) => welcomed.ok().and_then(Result::ok),
        // Nothing was asked yet, so there is nothing to drain.
        _ = phases.wait_for(|phase| *phase != Phase::Serving) => None,
        () = usage.evicted.notified() => None,
    };
    let Some((stream, read, client)) = welcomed else { return };
    // What it proved is known since the connection was established.
    let peer = Arc::new(stream.peer().clone());
    let now = Instant::now();
    let charge = server.budget.open_charge(&peer.account());
    let session = Arc::new(Session {
        peer,
        state: Mutex::new(State {
            running: Running::default(),
            outbox: Outbox::default(),
            writer: IdleWriter::default(),
            writing: None,
            unwritten: 0,
            taken_at: now,
            taken: 0,
            last_id: 0,
            held: 0,
            drained_at: None,
            next_look: now,
            busy: now,
            partial: None,
            whole_frame_at: now,
            frame_bytes: 0,
            frame_moved: now,
            charge,
            eviction: None,
        }),
        to_read: Notify::new(),
        to_keep: Notify::new(),
        paused: AtomicBool::new(false),
        server,
    });
    let _handlers = Handlers(Arc::clone(&session));
    if !usage.begin(&session) {
        return;
    }
    let limits = session.server.settings.limits;
    let mut reader = Reader::new(
        FrameReader::new(read, limits.max_payload()),
        Intake::new(client.limits.max_body as usize),
    );
    let (mut from, to) = tokio::io::split(stream);
    let mut writer = Writer { to, batch: Batch::default() };
    let end = {
        let mut reading = pin!(reader.run(&session, &mut from));
        let mut writing = pin!(writer.run(&session));
        let mut keeping = pin!(keep(&session, &mut phases));
        poll_fn(|cx| {
            loop {
                let mut end = reading.as_mut().poll(cx);
                if end.is_pending() {
                    end = writing.as_mut().poll(cx);
                }
                if end.is_ready() {
                    return end;
                }
                if !session.paused.swap(false, Relaxed) {
                    return keeping.as_mut().poll(cx);
                }
            }
        })
        .await
    };
    let farewell_permit = match end {
        End::Lost => return,
        End::Closed => {
            // Nobody waits for what is still at work. What is finished may still be read.
            session.state.lock().running.drop_all();
            let limit = session.server.settings.frame_timeout;
            let flushed = tokio::select! {
                flushed = timeout(limit, writer.flush(&session)) => flushed,
                () = usage.evicted.notified() => return,
            };
            if !matches!(flushed, Ok(Ok(()))) {
                return;
            }
            None
        }
        End::Refused(error) => {
            event!(DEBUG, host = &*session.peer.host, %error, "a peer broke the protocol");
            session.state.lock().outbox.append(|out| encode_connection_error(out, &error));
            None
        }
        End::Done => None,
        End::Evicted => {
            let Ok(permit) = session.server.farewells.try_acquire() else {
                let _ = timeout(EVICTION_TIMEOUT, writer.flush(&session)).await;
                return;
            };
            Some(permit)
        }
        End::Stuck => {
            // With it goes the frame that was half read.
            drop(reader);
            {
                let mut state = session.state.lock();
                state.frame_bytes = 0;
                state.recount();
            }
            // Who reads learns which calls were not started. What is not read goes at once.
            let flushed = timeout(EVICTION_TIMEOUT, writer.flush(&session)).await;
            let permit = session.server.farewells.try_acquire();
            match (flushed, permit) {
                (Ok(Ok(())), Ok(permit)) => Some(permit),
                _ => return,
            }
        }
    };
    // The peer reads what was written before it sees the end: closing with unread bytes in our
    // receive buffer would reset the connection and destroy what is under way.
    let farewell = async {
        writer.flush(&session).await?;
        writer.to.shutdown().await?;
        // Not an array: it would be a part of every connection's task, from the first moment on.
        let mut rest = vec![0; 4096];
        while from.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let farewell = timeout(LINGER, farewell);
    match farewell_permit {
        Some(_permit) => {
            let _ = farewell.await;
        }
        None => tokio::select! {
            _ = farewell => {}
            () = usage.evicted.notified() => {}
        },
    }
}

/// Tells a client why its connection is refused.
pub(super) async fn refuse(server: Arc<Shared>, stream: Stream, cap: ReachedCap) {
    let told = async {
        let mut stream = stream.establish().await?;
        shake_hands(&server, &mut stream, Some(WireError::Full(cap.reason()))).await
    };
    // Whoever is slower is closed.
    let _ = timeout(LINGER, told).await;
}

/// Drops a connection's handlers with it: nobody could receive their answers.
struct Handlers(Arc<Session>);

impl Drop for Handlers {
    fn drop(&mut self) {
        self.0.state.lock().running.drop_all();
    }
}
