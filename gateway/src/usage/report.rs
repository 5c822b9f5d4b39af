//! What the command `cost` says. Pure: from sums, prices and a time to Markdown.

use std::{cmp::Reverse, collections::BTreeSet, ops::RangeInclusive, time::Duration};

use jiff::{Timestamp, ToSpan, civil::Date};

use super::{
    budget::{Budget, Cost},
    tally::{Tally, Used, day},
};
use crate::text;

/// Rooms that are shown one by one, those that used most.
const ROOMS: usize = 10;

/// `1,234,567`
pub(super) fn thousands(n: u128) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The times that a report tells of, each with its name.
fn periods(now: Timestamp) -> [(String, RangeInclusive<Date>); 3] {
    let today = day(now);
    let week = today.checked_sub(6.days()).unwrap_or(today);
    [
        ("today".to_owned(), today..=today),
        ("last 7 days".to_owned(), week..=today),
        (today.strftime("%B %Y").to_string(), today.first_of_month()..=today),
    ]
}

/// Prices at work, and the models that have none.
struct Prices<'b> {
    budget: &'b Budget,
    unknown: BTreeSet<String>,
}

impl<'b> Prices<'b> {
    fn new(budget: &'b Budget) -> Self {
        Self { budget, unknown: BTreeSet::new() }
    }

    /// `$1.23`; with `at least` before it when some of it has no price, and nothing when all of it has none.
    fn cost(&mut self, used: &Used) -> Option<String> {
        let (cost, unknown) = self.budget.cost(&used.models);
        let shown = match (unknown.is_empty(), cost == Cost::default()) {
            (true, _) => Some(cost.to_string()),
            (false, true) => None,
            (false, false) => Some(format!("at least {cost}")),
        };
        self.unknown.extend(unknown.into_iter().map(ToOwned::to_owned));
        shown
    }

    /// A paragraph that says which models have no price, where one was met.
    fn note(&self) -> Vec<String> {
        if self.unknown.is_empty() {
            return Vec::new();
        }
        let models: Vec<_> = self.unknown.iter().map(|model| text::code(model)).collect();
        let counted = match self.budget.daily_usd {
            Some(_) => " In the daily budget they count at the highest prices there are.",
            None => "",
        };
        let models = models.join(", ");
        let note = format!(
            "No price is known for {models}: set one under `[budget.prices]` in bot.toml to see what it costs.{counted}"
        );
        vec![String::new(), note]
    }
}

/// `1,234 tokens (input 1,000, …), 12 requests, $0.12`: what the model was used for.
fn amounts(used: &Used, prices: &mut Prices<'_>, kinds: bool) -> String {
    let amount = used.amount();
    let tokens = amount.tokens;
    let mut parts = vec![format!("{} tokens", thousands(tokens.total().into()))];
    if kinds && tokens.total() > 0 {
        let shown = [
            ("input", tokens.input),
            ("output", tokens.output),
            ("cache read", tokens.cache_read),
            ("cache write", tokens.cache_write),
        ];
        let shown = shown.map(|(kind, count)| format!("{kind} {}", thousands(count.into())));
        parts[0] = format!("{} ({})", parts[0], shown.join(", "));
        parts.push(counted(amount.requests, "request"));
    }
    parts.extend(prices.cost(used));
    parts.join(", ")
}

fn span(used: &Used) -> String {
    text::span(Duration::from_millis(used.millis))
}

/// The amounts, and the turns with their time.
fn line(used: &Used, prices: &mut Prices<'_>, kinds: bool) -> String {
    match used.turns {
        _ if used.is_empty() => "nothing".to_owned(),
        0 => amounts(used, prices, kinds),
        turns => format!("{}, {}, {}", amounts(used, prices, kinds), counted(turns, "turn"), span(used)),
    }
}

fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(n.into()), if n == 1 { "" } else { "s" })
}

/// How much of today's budget is used.
fn budget_lines(budget: &Budget, today: &Used) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(limit) = budget.daily_tokens {
        let used = today.amount().tokens.total();
        let share = u128::from(used) * 100 / u128::from(limit.max(1));
        let (used, limit) = (thousands(used.into()), thousands(limit.into()));
        lines.push(format!("- budget: {used} of {limit} tokens today ({share} %)"));
    }
    if let Some(limit) = budget.daily_usd {
        lines.push(format!("- budget: {} of ${limit} today", budget.charged(&today.models)));
    }
    lines
}

/// The report of one project.
pub(super) fn project(name: &str, tally: &Tally, budget: &Budget, now: Timestamp) -> String {
    let mut prices = Prices::new(budget);
    let mut lines = vec![format!("**What {name} has used** (days are those of UTC)"), String::new()];
    let periods = periods(now);
    for (when, days) in &periods {
        lines.push(format!("- {when}: {}", line(&tally.sum(days.clone()), &mut prices, true)));
    }
    if let Some(turn) = tally.last_turn() {
        lines.push(format!("- last turn: {}, {}", amounts(&turn.used, &mut prices, true), span(&turn.used)));
    }
    let [(_, today), _, (month, this_month)] = periods;
    lines.extend(budget_lines(budget, &tally.sum(today)));

    let mut rooms: Vec<_> = tally.by_room(this_month).into_iter().collect();
    rooms.sort_by_key(|(_, used)| Reverse(used.amount().tokens.total()));
    if rooms.len() > 1 {
        lines.extend([String::new(), format!("{month} by room:"), String::new()]);
        let rest = rooms.split_off(rooms.len().min(ROOMS));
        for (room, used) in &rooms {
            let room = room.as_ref().map_or("outside of turns".to_owned(), |room| text::code(&room.to_string()));
            lines.push(format!("- {room}: {}", line(used, &mut prices, false)));
        }
        if !rest.is_empty() {
            let more = counted(rest.len() as u64, "room");
            let used = sum(rest.iter().map(|(_, used)| used));
            lines.push(format!("- {more} more: {}", line(&used, &mut prices, false)));
        }
    }
    lines.extend(prices.note());
    lines.join("\n")
}

/// The report of all projects, or of those that somebody may use; those without a name are deleted.
pub(super) fn all(projects: &[(Option<String>, Tally)], whole: bool, budget: &Budget, now: Timestamp) -> String {
    let mut prices = Prices::new(budget);
    let whose = if whole { "all projects" } else { "the projects that you may use" };
    let mut lines = vec![format!("**What {whose} have used** (days are those of UTC)"), String::new()];
    let periods = periods(now);
    for (when, days) in &periods {
        let used: Vec<_> = projects.iter().map(|(_, tally)| tally.sum(days.clone())).collect();
        lines.push(format!("- {when}: {}", line(&sum(used.iter()), &mut prices, true)));
    }
    let [_, _, (month, this_month)] = periods;
    let (mut named, mut deleted) = (Vec::new(), Used::default());
    for (name, tally) in projects {
        let used = tally.sum(this_month.clone());
        match name {
            _ if used.is_empty() => {}
            Some(name) => named.push((name.as_str(), used)),
            None => deleted.merge(&used),
        }
    }
    named.sort_by_key(|(_, used)| Reverse(used.amount().tokens.total()));
    if !deleted.is_empty() {
        named.push(("deleted projects", deleted));
    }
    if !named.is_empty() {
        lines.extend([String::new(), format!("{month} by project:"), String::new()]);
        lines.extend(named.iter().map(|(name, used)| format!("- {name}: {}", line(used, &mut prices, false))));
    }
    lines.extend(prices.note());
    lines.join("\n")
}

fn sum<'u>(parts: impl Iterator<Item = &'u Used>) -> Used {
    parts.fold(Used::default(), |mut sum, used| {
        sum.merge(used);
        sum
    })
}
