//! `queue`: what has become of what people said, as long as it has no answer, and of the last that has one (CHAT-9).

use uuid::Uuid;

use super::{Asked, Commands, quoted};
use crate::{
    commands::grammar::Command,
    dispatch::SessionKey,
    outbox::OnTheWay,
    refusal::Refusal,
    sessions::{Ending, Over},
    text,
    turns::transaction,
    usage::pause_text,
};

/// How many messages of ours on their way are shown by their words.
const SHOWN: usize = 3;

impl Commands {
    /// What runs and waits for the chosen project, here in full, elsewhere as a number; what of ours this room has not got; and what
    /// became of the last that was answered here.
    pub(super) async fn queue(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let name = project.spec.map(|spec| spec.name).unwrap_or_default();
        let busy = self.inner.sessions.busy(|key| key.project == id).await;
        let mut lines = Vec::new();
        let (mut waiting, mut elsewhere) = (0, 0);
        let mut first = None;
        let state = self.state_of_waiting(id, busy.iter().any(|(_, session)| session.running.is_some()));
        for (key, session) in busy {
            waiting += session.waiting.len();
            if key.room != asked.to.room {
                elsewhere += session.waiting.len() + session.running.map_or(0, |running| running.messages.len());
                continue;
            }
            let running = session.running.map(|running| running.messages).unwrap_or_default();
            let said = self.inner.sessions.words(&running).await?;
            lines.extend(said.iter().map(|words| format!("- running: {}", quoted(&words.sender, &words.text))));
            first = first.or(session.waiting.first().map(|message| message.number));
            let said = self.inner.sessions.words(&session.waiting).await?;
            lines.extend(session.waiting.iter().zip(&said).map(|(message, words)| {
                format!("- **{}** {state}: {}", message.number, quoted(&words.sender, &words.text))
            }));
        }
        lines.extend(self.unsent(asked).await?);
        if elsewhere > 0 {
            lines.push(format!("- in other rooms: {}", text::count(elsewhere, "message")));
        }
        if let Some(pause) = self.inner.usage.paused(id) {
            lines.push(format!("- {}", pause_text(&name, &pause, waiting)));
        }
        let idle = if lines.is_empty() { ": nothing runs and nothing waits." } else { "" };
        lines.insert(0, format!("**{name}**{idle}"));
        lines.extend(self.last(id, asked).await?);
        // Shown with a number that is there.
        let hint =
            first.map(|number| format!("\n`{}` takes the message with that number out.", Command::Cancel { number }));
        let hint = hint.unwrap_or_default();
        Ok(format!("{}{hint}", lines.join("\n")))
    }

    /// What became of the last message here that needs nothing more; as long as its answer is on the way, that is told instead.
    async fn last(&self, project: Uuid, asked: &Asked) -> Result<Option<String>, Refusal> {
        let key = SessionKey { project, room: asked.to.room.clone(), thread: None };
        let Some(Over { turn, ending, last }) = self.inner.sessions.last_over(&key).await? else { return Ok(None) };
        let Some((at, delivered)) = self.inner.outbox.settled_at(&key.room, &transaction(turn)).await? else {
            return Ok(None);
        };
        let state = match ending {
            Ending::Stopped => "stopped",
            Ending::Answered if delivered => "delivered",
            _ => "failed",
        };
        let said = self.inner.sessions.words(&[last]).await?;
        let said = said.first().map(|words| quoted(&words.sender, &words.text)).unwrap_or_default();
        Ok(Some(format!("- last: {state} {}: {said}", at.strftime("%Y-%m-%d %H:%M:%S UTC"))))
    }

    /// What a project's messages do that no turn has yet: where nothing is before them, their turn begins as soon as nothing more
    /// is said for a moment.
    fn state_of_waiting(&self, project: Uuid, is_busy: bool) -> &'static str {
        if is_busy || self.inner.usage.paused(project).is_some() {
            "waiting"
        } else if self.inner.turns.running() >= self.inner.max_turns {
            "waiting for other projects"
        } else {
            "about to begin"
        }
    }

    /// The messages of ours that this room has not got.
    async fn unsent(&self, asked: &Asked) -> Result<Vec<String>, Refusal> {
        let room = &asked.to.room;
        let on_the_way = self.inner.outbox.on_the_way(room).await?;
        let more = on_the_way.len().saturating_sub(SHOWN);
        let mut lines: Vec<_> = on_the_way
            .iter()
            .take(SHOWN)
            .map(|OnTheWay { text, queued }| {
                let since = queued.strftime("%H:%M:%S UTC");
                format!("- on the way to this room since {since}: {}", text::code(&text::one_line(text, 100)))
            })
            .collect();
        if more > 0 {
            lines.push(format!("- on the way to this room: {more} more"));
        }
        let given_up = self.inner.outbox.given_up_in(room);
        if given_up > 0 {
            lines.push(format!(
                "- given up since musher was started: {}",
                text::count(usize::try_from(given_up).unwrap_or(usize::MAX), "message")
            ));
        }
        Ok(lines)
    }
}
