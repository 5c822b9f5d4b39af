//! What use costs, and whether a day's budget is used up. Pure: the time is handed in.

use std::collections::BTreeMap;

use bot_config::{Price, Prices, Usd};
use jiff::{Timestamp, tz::TimeZone};

use super::{
    report::thousands,
    tally::{Amount, Tokens, Used, day},
};

/// What a project may use in a day, by UTC, and what models cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budget {
    /// Tokens of all kinds together.
    pub daily_tokens: Option<u64>,
    /// Dollars.
    pub daily_usd: Option<Usd>,
    /// Prices by the beginning of a model's name.
    pub prices: Prices,
}

impl From<&bot_config::Budget> for Budget {
    fn from(settings: &bot_config::Budget) -> Self {
        Self {
            daily_tokens: settings.daily_tokens.map(Into::into),
            daily_usd: settings.daily_usd,
            prices: settings.prices.clone(),
        }
    }
}

/// The limit that a project has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many tokens a day.
    Tokens(u64),
    /// So many dollars a day.
    Usd(Usd),
}

/// A project whose budget is used up: its queue rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// What it has reached.
    pub limit: Limit,
    /// When the queue goes on: the next midnight of UTC.
    pub until: Timestamp,
}

/// An amount of dollars, in millionths of a millionth: prices are in millionths of a dollar per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u128);

impl Cost {
    /// What these tokens cost at this price.
    fn of(tokens: Tokens, price: Price) -> Self {
        let part = |tokens: u64, price: Usd| u128::from(tokens) * u128::from(price.micros());
        Self(
            part(tokens.input, price.input)
                + part(tokens.output, price.output)
                + part(tokens.cache_read, price.cache_read)
                + part(tokens.cache_write, price.cache_write),
        )
    }

    fn plus(self, more: Self) -> Self {
        Self(self.0.saturating_add(more.0))
    }

    /// Whether this is as much as `limit` or more.
    fn reaches(self, limit: Usd) -> bool {
        self.0 >= u128::from(limit.micros()) * 1_000_000
    }
}

/// `$12.34`; below ten cents with four places.
impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Rounded to a hundredth of a cent.
        let units = self.0.saturating_add(50_000_000) / 100_000_000;
        if units == 0 || units >= 1000 {
            let cents = self.0.saturating_add(5_000_000_000) / 10_000_000_000;
            write!(f, "${}.{:02}", thousands(cents / 100), cents % 100)
        } else {
            write!(f, "${}.{:04}", units / 10_000, units % 10_000)
        }
    }
}

impl Budget {
    /// What the models cost whose price is known, and which are not.
    pub fn cost<'m>(&self, models: &'m BTreeMap<String, Amount>) -> (Cost, Vec<&'m str>) {
        let (mut cost, mut unknown) = (Cost::default(), Vec::new());
        for (model, amount) in models {
            match self.prices.of(model) {
                Some(price) => cost = cost.plus(Cost::of(amount.tokens, price)),
                None if amount.tokens == Tokens::default() => {}
                None => unknown.push(model.as_str()),
            }
        }
        (cost, unknown)
    }

    /// What the models count as in `daily_usd`: one without a price counts at the highest of each kind, so that none is
    /// free because nobody named it.
    pub fn charged(&self, models: &BTreeMap<String, Amount>) -> Cost {
        let price = |model: &str| self.prices.of(model).unwrap_or_else(|| self.prices.highest());
        models.iter().fold(Cost::default(), |cost, (model, amount)| cost.plus(Cost::of(amount.tokens, price(model))))
    }

    /// Whether a project that has used this much today rests.
    pub fn pause(&self, today: &Used, now: Timestamp) -> Option<Pause> {
        let tokens = self.daily_tokens.filter(|limit| today.amount().tokens.total() >= *limit);
        let usd = self.daily_usd.filter(|limit| self.charged(&today.models).reaches(*limit));
        let limit = tokens.map(Limit::Tokens).or(usd.map(Limit::Usd))?;
        Some(Pause { limit, until: next_day(now) })
    }
}

/// The next midnight of UTC.
pub fn next_day(now: Timestamp) -> Timestamp {
    let midnight = day(now).tomorrow().and_then(|day| day.to_zoned(TimeZone::UTC));
    // There is none after the last day that the calendar has.
    midnight.map_or(Timestamp::MAX, |midnight| midnight.timestamp())
}

/// What a room is told whose project rests, with the number of messages that wait.
pub fn pause_text(project: &str, pause: &Pause, waiting: usize) -> String {
    let limit = match pause.limit {
        Limit::Tokens(tokens) => format!("{} tokens", thousands(tokens.into())),
        Limit::Usd(usd) => format!("${usd}"),
    };
    let waits = match waiting {
        0 => "messages wait".to_owned(),
        1 => "1 message waits".to_owned(),
        n => format!("{n} messages wait"),
    };
    let until = pause.until.strftime("%H:%M UTC");
    format!("Today's budget of {project} ({limit}) is used up; {waits} until {until}.")
}
