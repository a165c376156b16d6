//! The loop that reads a connection's frames.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::ReadHalf;
use tokio::time::Instant;

use super::intake::Intake;
use super::reply::{no_memory, too_large};
use super::session::{End, Session, State};
use crate::call::after;
use crate::error::cut;
use crate::protocol::{Cut, FrameReader, FrameType, WireError};
use crate::sync::event;
use crate::transport::{CHARGE_STEP, Stream, read_some};

/// How long a reply waits at most for the calls that were read with it, but for the one whose handler runs.
const PATIENCE: Duration = Duration::from_micros(500);

/// The loop that takes calls in.
pub(super) struct Reader {
    frames: FrameReader,
    intake: Intake,
    /// What is left when half of what the last read brought is taken in; 0 once that is so.
    half: usize,
    /// When what is taken in was read: the time of its calls counts from then on, also if their turn comes
    /// after a pause.
    came: Option<Instant>,
    /// Bytes that came of a long frame since its progress was last noted.
    arrived: usize,
    /// There was no memory for the next frame: it is passed over.
    is_starved: bool,
}

impl Reader {
    pub(super) fn new(frames: FrameReader, intake: Intake) -> Self {
        Self { frames, intake, half: 0, came: None, arrived: 0, is_starved: false }
    }

    pub(super) async fn run(&mut self, session: &Arc<Session>, from: &mut ReadHalf<Stream>) -> End {
        loop {
            // First what came with the handshake, then what each read brings.
            let whole = self.frames.whole();
            let taken = self.take_in(session);
            let (full, starved) = {
                let mut state = session.state.lock();
                self.intake.hand_over(&mut state);
                if self.frames.whole() != whole {
                    // The time for the next frame starts anew.
                    state.partial = None;
                    state.whole_frame_at = self.came.unwrap_or(state.whole_frame_at);
                    state.frame_bytes = 0;
                }
                let starved = self.charge(&mut state);
                state.partial = match (self.frames.is_within_frame(), state.partial) {
                    (false, _) => None,
                    (true, since) => Some(since.unwrap_or_else(Instant::now)),
                };
                if state.partial.is_some() {
                    let due = after(Instant::now(), session.server.settings.frame_timeout);
                    session.look_by(&state, due);
                }
                let full = state.is_full(session.outbox_limit());
                if full || starved {
                    // The frame is not slow while it is we who do not read.
                    state.partial = None;
                }
                (full, starved)
            };
            match taken {
                // It reads no answer to that, but may read the replies that were finished before.
                Err(WireError::Peer(reason)) => {
                    event!(
                        DEBUG,
                        host = &*session.peer.host,
                        reason,
                        "the client refuses the connection"
                    );
                    return End::Closed;
                }
                Err(error) => return End::Refused(error),
                Ok(more) if more || full => {
                    if full {
                        session.room().await;
                        // That its client did not read is not load, and would look like it.
                        self.came = None;
                    }
                    if more {
                        session.pause().await;
                        continue;
                    }
                }
                Ok(_) => {}
            }
            // In a box: its room would be a part of every connection's task.
            if starved && !Box::pin(session.memory(self.frames.wanted())).await {
                self.frames.refuse_next();
                (self.is_starved, self.came) = (true, None);
                continue;
            }
            match read_some(from, &mut self.frames).await {
                Ok(0) => return End::Closed,
                Err(_) => return End::Lost,
                Ok(bytes) => {
                    self.frames.was_read(bytes);
                    self.half = self.frames.uncut() / 2;
                    self.came = None;
                    self.arrived += bytes;
                }
            }
        }
    }

    /// Charges what the connection holds after a pass, and the frame that is read next. True: there is no
    /// memory for that frame.
    fn charge(&mut self, state: &mut State) -> bool {
        state.recount();
        let wanted = self.frames.wanted();
        if wanted < CHARGE_STEP {
            return false;
        }
        let now = self.came.unwrap_or(state.whole_frame_at);
        if state.frame_bytes == 0 {
            self.arrived = 0;
            return !state.admit_frame(wanted, now);
        }
        // Without progress while it was we who did not read, it is not stuck either.
        if self.arrived >= CHARGE_STEP || state.partial.is_none() {
            (self.arrived, state.frame_moved) = (0, now);
        }
        false
    }

    /// Takes what was read, frame by frame; true: there may be more, but the replies so far are worth
    /// to be written.
    fn take_in(&mut self, session: &Arc<Session>) -> Result<bool, WireError> {
        let mut since = Instant::now();
        let write_by = after(since, PATIENCE);
        let Self { frames, intake, half, came, is_starved, .. } = self;
        let came = *came.get_or_insert(since);
        while let Some(frame) = frames.cut()? {
            match frame {
                Cut::Whole(header, payload) => match header.frame {
                    FrameType::Call => intake.take(session, header, payload, came, &mut since)?,
                    FrameType::Cancel => session.state.lock().running.cancel(header.id),
                    FrameType::Ping => intake.pong(payload.as_slice()),
                    FrameType::Pong | FrameType::Void => {}
                    FrameType::ConnectionError => {
                        let text = String::from_utf8_lossy(payload.as_slice());
                        let text = text.escape_debug().to_string();
                        return Err(WireError::Peer(cut(&text).to_owned()));
                    }
                    FrameType::Reply | FrameType::Drain => {
                        return Err(WireError::Side(header.frame as u8));
                    }
                },
                Cut::Oversized(header) if header.frame == FrameType::Call => {
                    let why = match std::mem::take(is_starved) {
                        true => no_memory(),
                        false => too_large(session.server.settings.limits.max_body),
                    };
                    intake.refuse(session, header.id, why)?;
                }
                Cut::Oversized(header) => return Err(WireError::Side(header.frame as u8)),
            }
            let uncut = frames.uncut();
            let is_taken = *half > 0 && uncut <= *half;
            if uncut > 0 && (intake.is_full(is_taken) || since >= write_by) {
                if is_taken {
                    *half = 0;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }
}
