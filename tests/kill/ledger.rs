//! What was said and what came back, and whether that is as promised. Pure: it is told everything.
//!
//! A message is settled by the bot's `m.text` that names its event in `dev.musher.answers`: an answer, or a failure that
//! is said (⚠). Text alone counts for less: it tells what an answer is about, not what it stands for.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    journal::Turn,
    plan::{Target, project_of},
};

/// What every message that wants an answer ends with; its number stands before it.
pub const PLEASE: &str = " please answer";

/// DESIGN's bound on the attempts of a batch.
pub const MAX_ATTEMPTS: u64 = 2;

/// How long after a part of a project was killed that may still fail what is said, if nothing of the project was answered
/// since: the gateway's own patience with a sled that it has started.
const RECOVERY: Duration = Duration::from_secs(20);

/// How soon after its answer an agent that is killed may not remember it.
const FORGETS: Duration = Duration::from_secs(1);

/// How long a gateway that ended by itself may be gone when that is noticed.
const UNNOTICED: Duration = Duration::from_secs(1);

/// How far the journal's clock may be from ours.
const SKEW: Duration = Duration::from_millis(100);

/// How much of what happened around a fault is shown.
const AROUND: Duration = Duration::from_secs(8);

/// Something that the person said and the homeserver took.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its number.
    pub number: u32,
    /// Where.
    pub room: usize,
    /// Its event id.
    pub event: String,
    /// When it was first sent, from the beginning.
    pub at: Duration,
}

/// A message of the bot.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// When the person saw it.
    pub at: Duration,
    /// Where.
    pub room: usize,
    /// Whether it is an `m.text`.
    pub text: bool,
    /// Whether it only changes an earlier one.
    pub edit: bool,
    /// Its words.
    pub body: String,
    /// `dev.musher.answers`.
    pub answers: Vec<String>,
    /// `dev.musher.transaction`.
    pub transaction: String,
}

/// A request of an agent to the model.
#[derive(Debug, Clone)]
pub struct Asked {
    /// When.
    pub at: Duration,
    /// What the agent was told since its last answer, a prompt each; where that asks for nothing, since one before.
    pub prompts: Vec<String>,
    /// Whether it brings a tool's result.
    pub after_tool: bool,
}

/// A part was killed.
#[derive(Debug, Clone)]
pub struct Outage {
    /// What.
    pub what: Target,
    /// When.
    pub from: Duration,
    /// When it was up again, as far as it is for us to start it.
    pub to: Duration,
}

/// A message that was answered.
#[derive(Debug, Clone, Copy)]
struct Answered {
    /// What it was about.
    project: usize,
    /// When an agent was first asked for it.
    asked: Duration,
    /// When the answer came.
    at: Duration,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Neither answered nor visibly failed.
    Lost,
    /// Visibly failed, though its agent was not killed, nor its turn interrupted as often as it is tried.
    Needless,
    /// Settled by two messages.
    Twice,
    /// Settled before an earlier message of its room.
    Disordered,
    /// Handed to an agent more often than once, and once more for an interruption of its turn (DESIGN, "Attempts").
    Attempts,
    /// An undisturbed turn asked the model again.
    Requests,
    /// The answer is about other messages than it names, or does not name what it answers.
    Misattributed,
    /// The gateway ended by itself, for no reason that lies in what was away.
    Crash,
    /// The journal of the gateway or of a sled is not sound.
    Journal,
    /// A process is left.
    Process,
    /// A container is left.
    Container,
}

impl Fault {
    /// All, in the order of the table.
    pub const ALL: [Self; 11] = [
        Self::Lost,
        Self::Needless,
        Self::Twice,
        Self::Disordered,
        Self::Attempts,
        Self::Requests,
        Self::Misattributed,
        Self::Crash,
        Self::Journal,
        Self::Process,
        Self::Container,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Lost => "messages lost",
            Self::Needless => "failed though neither interrupted twice nor their agent killed",
            Self::Twice => "answered twice",
            Self::Disordered => "answered out of order",
            Self::Attempts => "batches with more attempts than one and one for an interruption",
            Self::Requests => "undisturbed turns with more than one model request",
            Self::Misattributed => "answers that name other messages than theirs",
            Self::Crash => "gateway ended by itself",
            Self::Journal => "journals that `musher journal verify` finds unsound",
            Self::Process => "orphaned processes",
            Self::Container => "orphaned containers",
        }
    }
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Ledger {
    /// In the order of each room.
    pub said: Vec<Said>,
    /// In the order of each room.
    pub heard: Vec<Heard>,
    /// In order of time.
    pub asked: Vec<Asked>,
    /// In order of time.
    pub outages: Vec<Outage>,
    /// When it was noticed that a gateway had ended by itself.
    pub ended: Vec<Duration>,
    /// What else is worth knowing later.
    pub notes: Vec<(Duration, String)>,
    /// Faults that show outside the rooms.
    pub found: Vec<(Fault, String)>,
}

/// What became of everything.
#[derive(Debug)]
pub struct Verdict {
    counts: BTreeMap<Fault, usize>,
    stories: Vec<String>,
    /// What people read of what failed, and of how many messages.
    failures: BTreeMap<String, usize>,
    summary: String,
}

impl Ledger {
    /// The numbers that are not settled yet.
    pub fn open(&self) -> Vec<u32> {
        self.said.iter().filter(|said| self.settled_at(said).is_none()).map(|said| said.number).collect()
    }

    /// Where the messages stand among `heard` that settle this one.
    fn settlements(&self, said: &Said) -> Vec<usize> {
        let named = |want_text: bool| -> Vec<usize> {
            let all = self.heard.iter().enumerate().filter(|(_, heard)| !heard.edit && heard.room == said.room);
            let fits = all.filter(|(_, heard)| heard.answers.contains(&said.event));
            let kind = fits.filter(|(_, heard)| heard.text == want_text && (heard.text || heard.failed()));
            kind.map(|(at, _)| at).collect()
        };
        let texts = named(true);
        // A failure may be a notice; one that precedes an answer is not the end of the matter.
        if texts.is_empty() { named(false).into_iter().take(1).collect() } else { texts }
    }

    /// The one that is about it without naming it, where none names it.
    fn unnamed(&self, said: &Said) -> Option<usize> {
        let about = |heard: &Heard| {
            heard.room == said.room && !heard.edit && heard.text && numbers(&heard.body).contains(&said.number)
        };
        self.heard.iter().position(about)
    }

    fn settled_at(&self, said: &Said) -> Option<usize> {
        self.settlements(said).first().copied().or_else(|| self.unnamed(said))
    }

    /// Counts, and tells what happened around each fault.
    pub fn judge(&self) -> Verdict {
        let mut faults: Vec<(Fault, String)> = self.found.clone();
        let (mut answered, mut failed, mut undisturbed) = (0, 0, 0);
        let mut failures: BTreeMap<String, usize> = BTreeMap::new();
        let mut last: BTreeMap<usize, (usize, u32)> = BTreeMap::new();
        let all_answered = self.answered();
        for said in &self.said {
            let settlements = self.settlements(said);
            let Some(at) = self.settled_at(said) else {
                faults.push((Fault::Lost, self.story(said, "has no answer and no failure")));
                continue;
            };
            let end = &self.heard[at];
            let count = if end.failed() { &mut failed } else { &mut answered };
            *count += 1;
            if end.failed() {
                *failures.entry(brief(&end.body)).or_default() += 1;
            }
            if end.failed() && !self.may_fail(said, end.at, &all_answered) {
                let why = "failed though neither interrupted twice nor its agent killed";
                faults.push((Fault::Needless, self.story(said, why)));
            }
            if settlements.len() > 1 {
                faults.push((Fault::Twice, self.story(said, &format!("is settled by {} messages", settlements.len()))));
            }
            if settlements.is_empty() {
                faults.push((Fault::Misattributed, self.story(said, "is answered by a message that does not name it")));
            } else if !end.failed() && !numbers(&end.body).contains(&said.number) {
                faults.push((Fault::Misattributed, self.story(said, "is named by an answer that is not about it")));
            }
            let (latest, number) = last.entry(said.room).or_insert((at, said.number));
            if at < *latest {
                faults.push((Fault::Disordered, self.story(said, &format!("is settled before m{number}"))));
            } else {
                (*latest, *number) = (at, said.number);
            }
            let attempts = self.attempts(said.number);
            if attempts > self.attempts_allowed(said, &all_answered) {
                faults.push((Fault::Attempts, self.story(said, &format!("was handed to an agent {attempts} times"))));
            }
            if !end.failed() && self.is_answered_beside(said, at) {
                faults.push((Fault::Twice, self.story(said, "is answered again by a message that names others")));
            }
            if self.undisturbed(said, end.at) {
                undisturbed += 1;
                let requests = self.requests(said.number);
                if requests > 1 {
                    faults.push((Fault::Requests, self.story(said, &format!("took {requests} model requests"))));
                }
            }
        }
        let mut counts: BTreeMap<Fault, usize> = Fault::ALL.map(|fault| (fault, 0)).into();
        for (fault, _) in &faults {
            *counts.entry(*fault).or_default() += 1;
        }
        let mut killed: BTreeMap<Target, usize> = BTreeMap::new();
        for outage in &self.outages {
            *killed.entry(outage.what).or_default() += 1;
        }
        let killed: Vec<String> = killed.into_iter().map(|(what, times)| format!("{what} {times}")).collect();
        let summary = format!(
            "{} messages: {answered} answered, {failed} visibly failed; {undisturbed} of them undisturbed\n{} model requests\n{} kills: {}",
            self.said.len(),
            self.asked.len(),
            self.outages.len(),
            killed.join(", ")
        );
        let stories = faults.into_iter().map(|(fault, story)| format!("{}: {story}", fault.name())).collect();
        Verdict { counts, stories, failures, summary }
    }

    /// How often the agent was told of this message or, after it and before another, told something else: a note that
    /// it was interrupted.
    fn attempts(&self, number: u32) -> u64 {
        let told = |asked: &Asked| {
            let asked_for: Vec<_> = asked.prompts.iter().map(|prompt| wanted(prompt)).collect();
            let Some(first) = asked_for.iter().position(|wanted| wanted.contains(&number)) else { return 0 };
            let same = |wanted: &&Vec<u32>| wanted.is_empty() || wanted.contains(&number);
            1 + asked_for[first + 1..].iter().take_while(same).map(|_| 1).sum::<u64>()
        };
        self.asked.iter().map(told).max().unwrap_or(0)
    }

    /// Requests whose newest people's words hold this message, tools' results apart.
    fn requests(&self, number: u32) -> usize {
        let newest = |asked: &&Asked| {
            let last = asked.prompts.iter().rev().map(|prompt| wanted(prompt)).find(|wanted| !wanted.is_empty());
            !asked.after_tool && last.is_some_and(|wanted| wanted.contains(&number))
        };
        self.asked.iter().filter(newest).count()
    }

    /// Whether nothing was killed or away between the message and its settlement.
    fn undisturbed(&self, said: &Said, settled: Duration) -> bool {
        self.outages.iter().all(|outage| outage.to < said.at || settled < outage.from)
    }

    /// Whether another text than the one that settles it is about this message, though it names others or none. An agent that
    /// was killed before it put its answer away gives it again.
    fn is_answered_beside(&self, said: &Said, settled: usize) -> bool {
        let (project, end) = (project_of(said.room), self.heard[settled].at.saturating_add(FORGETS));
        if self.outages.iter().any(|outage| outage.what.touches(project) && (said.at..=end).contains(&outage.from)) {
            return false;
        }
        self.heard.iter().enumerate().any(|(at, heard)| {
            let about = heard.text && !heard.edit && !heard.failed() && numbers(&heard.body).contains(&said.number);
            at != settled && heard.room == said.room && about && !heard.answers.contains(&said.event)
        })
    }

    /// Once, and once more where its turn was interrupted.
    fn attempts_allowed(&self, said: &Said, answered: &[Answered]) -> u64 {
        let settled = self.settled_at(said).map_or(Duration::MAX, |at| self.heard[at].at);
        let project = project_of(said.room);
        1 + u64::from(self.in_life(said, settled, answered).any(|outage| outage.what.interrupts(project)))
    }

    /// Whether its turn may have failed: an agent that dies alone has failed, and a turn that was interrupted is tried once more
    /// by itself. However often gateways are killed, that interrupts a turn once at most, and only before its hand-over.
    fn may_fail(&self, said: &Said, settled: Duration, answered: &[Answered]) -> bool {
        let project = project_of(said.room);
        let mut interruptions = u64::from(self.gateway_fell(said.at, settled));
        for outage in self.in_life(said, settled, answered) {
            if outage.what == Target::Agent(project) {
                return true;
            }
            interruptions += u64::from(outage.what.interrupts(project));
        }
        interruptions >= MAX_ATTEMPTS
    }

    /// Of what its project's turns cannot go on without: what was killed in the message's life, or had not recovered before it.
    fn in_life(&self, said: &Said, settled: Duration, answered: &[Answered]) -> impl Iterator<Item = &Outage> {
        let project = project_of(said.room);
        // With the first answer that an agent was asked for since.
        let recovered = move |outage: &Outage| {
            let since = answered.iter().filter(|answer| answer.project == project && answer.asked > outage.to);
            since.map(|answer| answer.at).min().unwrap_or(Duration::MAX).min(outage.to.saturating_add(RECOVERY))
        };
        let within = move |outage: &Outage| outage.from <= settled && said.at <= recovered(outage);
        self.outages.iter().filter(move |outage| outage.what.touches(project) && within(outage))
    }

    /// Whether a gateway was killed or ended by itself in that time.
    fn gateway_fell(&self, from: Duration, to: Duration) -> bool {
        let killed = |outage: &Outage| outage.what == Target::Gateway && (from..=to).contains(&outage.from);
        let ended = |at: &Duration| (from..=to.saturating_add(UNNOTICED)).contains(at);
        self.outages.iter().any(killed) || self.ended.iter().any(ended)
    }

    /// What of a turn's attempts, or of its failure, is explained by nothing that was killed.
    pub fn unexplained(&self, turn: &Turn) -> Option<(Fault, &'static str)> {
        let Some(said) = self.said.iter().find(|said| turn.answers.contains(&said.event)) else {
            return Some((Fault::Misattributed, "answers nothing that was said"));
        };
        let project = project_of(said.room);
        let between = |from: Duration, to: Duration, which: fn(Target, usize) -> bool| {
            let (from, to) = (from.saturating_sub(SKEW), to + SKEW);
            let within = move |outage: &&Outage| outage.from <= to && from <= outage.to;
            self.outages.iter().filter(move |outage| which(outage.what, project)).filter(within)
        };
        let first = |until| between(turn.begun, until, Target::interrupts);
        // One whose gateway was killed before the hand-over counts as interrupted, too.
        let never_begun = |until: Duration| self.gateway_fell(turn.begun.saturating_sub(SKEW), until + SKEW);
        match turn.again {
            Some((attempt, _)) if attempt > MAX_ATTEMPTS => return Some((Fault::Attempts, "was tried too often")),
            Some((_, again)) if first(again).next().is_none() && !never_begun(again) => {
                return Some((Fault::Attempts, "was tried again though nothing had interrupted it"));
            }
            _ => {}
        }
        let (ending, end) = turn.end.as_ref()?;
        match (ending.as_str(), turn.again) {
            ("answered", _) => None,
            ("interrupted", None) => Some((Fault::Needless, "was interrupted and not tried again")),
            ("interrupted", Some((_, again))) => {
                let other = |second: &Outage| first(again).any(|first| !std::ptr::eq(first, second));
                let mut second = between(again, *end, Target::interrupts);
                let explained = second.any(|second| never_begun(again) || other(second));
                (!explained).then_some((Fault::Needless, "failed though its second attempt was not interrupted"))
            }
            _ => {
                let mut killed = between(turn.begun, *end, |what, project| what == Target::Agent(project));
                killed.next().is_none().then_some((Fault::Needless, "failed though its agent was not killed"))
            }
        }
    }

    /// Of these parts, the kinds of which nothing was killed. A container's start is not always there to meet.
    pub fn spared(&self, targets: impl Iterator<Item = Target>) -> Vec<Target> {
        let was_killed = |target: &Target| self.outages.iter().any(|outage| outage.what.is_like(*target));
        let mut spared: Vec<Target> = Vec::new();
        for target in targets.filter(|target| !matches!(target, Target::Start(_)) && !was_killed(target)) {
            if !spared.iter().any(|known| known.is_like(target)) {
                spared.push(target);
            }
        }
        spared
    }

    /// All messages that were answered.
    fn answered(&self) -> Vec<Answered> {
        let mut asked: BTreeMap<u32, Duration> = BTreeMap::new();
        for request in &self.asked {
            for number in request.prompts.iter().flat_map(|prompt| wanted(prompt)) {
                asked.entry(number).or_insert(request.at);
            }
        }
        let answered = self.said.iter().filter_map(|said| {
            let end = &self.heard[self.settled_at(said)?];
            let asked = *asked.get(&said.number)?;
            (!end.failed()).then_some(Answered { project: project_of(said.room), asked, at: end.at })
        });
        answered.collect()
    }

    /// Whether this part is away.
    pub fn is_away(&self, now: Duration, which: impl Fn(Target) -> bool) -> bool {
        self.outages.iter().any(|outage| which(outage.what) && (outage.from..=outage.to).contains(&now))
    }

    /// From when on no kill is an excuse for a failure.
    pub fn calm_from(&self) -> Duration {
        self.outages.iter().map(|outage| outage.to.saturating_add(RECOVERY)).max().unwrap_or_default()
    }

    /// What was said, asked and killed around the fate of a message, in order of time.
    fn story(&self, said: &Said, what: &str) -> String {
        let end = self.settlements(said).last().map_or(said.at, |at| self.heard[*at].at);
        format!("m{} in room {} {what}\n{}", said.number, said.room, self.around(said.room, said.at, end))
    }

    /// What was said, asked and killed around a turn, in order of time.
    pub fn turn_story(&self, turn: &Turn) -> String {
        let said = self.said.iter().find(|said| turn.answers.contains(&said.event));
        let end = turn.end.as_ref().map_or(turn.begun, |(_, at)| *at);
        said.map(|said| self.around(said.room, turn.begun, end)).unwrap_or_default()
    }

    fn around(&self, room: usize, from: Duration, end: Duration) -> String {
        let from = from.saturating_sub(AROUND);
        let mut lines: Vec<(Duration, String)> = Vec::new();
        let here = self.said.iter().filter(|other| other.room == room);
        lines.extend(here.map(|other| (other.at, format!("person: m{} ({})", other.number, other.event))));
        for heard in self.heard.iter().filter(|heard| heard.room == room) {
            let kind = if heard.text { "text" } else { "notice" };
            let edit = if heard.edit { ", an edit" } else { "" };
            let (body, answers) = (brief(&heard.body), &heard.answers);
            let transaction = &heard.transaction;
            lines.push((heard.at, format!("bot ({kind}{edit}, {transaction}, answers {answers:?}): {body}")));
        }
        for asked in &self.asked {
            let tool = if asked.after_tool { " with a tool's result" } else { "" };
            let prompts: Vec<String> = asked.prompts.iter().map(|prompt| shown(prompt)).collect();
            lines.push((asked.at, format!("model asked{tool}: {}", prompts.join(" | "))));
        }
        for outage in &self.outages {
            lines.push((outage.from, format!("killed: {} (back at {:.2} s)", outage.what, outage.to.as_secs_f64())));
        }
        lines.extend(self.notes.iter().cloned());
        lines.retain(|(at, _)| (from..=end + AROUND).contains(at));
        lines.sort_by_key(|(at, _)| *at);
        let lines: Vec<String> =
            lines.into_iter().map(|(at, line)| format!("    {:8.2} s  {line}", at.as_secs_f64())).collect();
        lines.join("\n")
    }
}

impl Heard {
    fn failed(&self) -> bool {
        self.body.starts_with('⚠')
    }
}

impl Verdict {
    /// Whether every count is zero.
    pub fn is_clean(&self) -> bool {
        self.counts.values().all(|count| *count == 0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for story in &self.stories {
            writeln!(f, "{story}\n")?;
        }
        writeln!(f, "{}", self.summary)?;
        for (words, count) in &self.failures {
            writeln!(f, "{count:7} × {words}")?;
        }
        for (fault, count) in &self.counts {
            writeln!(f, "  {count:5}  {}", fault.name())?;
        }
        Ok(())
    }
}

/// The numbers that a text names.
pub fn numbers(text: &str) -> Vec<u32> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter_map(|word| word.strip_prefix('m')?.parse().ok()).collect()
}

/// The numbers whose answer a prompt asks for.
pub fn wanted(prompt: &str) -> Vec<u32> {
    let ends = prompt.match_indices(PLEASE).map(|(at, _)| &prompt[..at]);
    ends.filter_map(|before| numbers(before.rsplit(char::is_whitespace).next()?).pop()).collect()
}

/// A prompt by its numbers, or by its words where it has none.
fn shown(prompt: &str) -> String {
    let named: Vec<String> = wanted(prompt).iter().map(|number| format!("m{number}")).collect();
    if named.is_empty() { format!("“{}”", brief(prompt)) } else { named.join(" ") }
}

fn brief(text: &str) -> String {
    const LONGEST: usize = 160;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
