//! Money: amounts, and what models cost.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::DeValue;

use crate::read::nearest;
use crate::value::{Problems, Value, quoted, wrong_type};

/// The largest amount, in dollars. More is a mistake.
const MAX_USD: u64 = 1_000_000;
/// What a price is made of.
const PARTS: [&str; 4] = ["input", "output", "cache_read", "cache_write"];

/// An amount of US dollars, exact to a millionth: 0 to 1,000,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(u64);

impl Usd {
    /// In millionths of a dollar.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// Decimal digits as TOML writes them; nothing when it is no such amount.
    fn from_decimal(text: &str) -> Option<Self> {
        let text = text.replace('_', "");
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > 6 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let whole: u64 = whole.trim_start_matches('+').parse().ok().filter(|whole| *whole <= MAX_USD)?;
        let fraction: u64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").parse().ok()? };
        let micros = whole * 1_000_000 + fraction;
        (micros <= MAX_USD * 1_000_000).then_some(Self(micros))
    }
}

/// As people write it: two places after the point, or as many as it has.
impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let fraction = format!("{micros:06}");
        write!(f, "{whole}.{:0<2}", fraction.trim_end_matches('0'))
    }
}

impl Value for Usd {
    fn kind() -> String {
        "an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let amount = match value.get_ref() {
            DeValue::Float(float) => Self::from_decimal(float.as_str()),
            DeValue::Integer(integer) if integer.radix() == 10 => Self::from_decimal(integer.as_str()),
            DeValue::Integer(_) => None,
            _ => return wrong_type(name, value, problems),
        };
        if amount.is_none() {
            problems.push(value.span().start, format!("{name} must be {}", Self::kind()));
        }
        amount
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// What a million tokens of each kind cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price {
    /// Tokens of the request that were neither read from the cache nor written to it.
    pub input: Usd,
    /// Tokens of the answer.
    pub output: Usd,
    /// Tokens of the request that were read from the cache.
    pub cache_read: Usd,
    /// Tokens of the request that were written to the cache.
    pub cache_write: Usd,
}

impl Price {
    fn part(&mut self, name: &str) -> Option<&mut Usd> {
        match name {
            "input" => Some(&mut self.input),
            "output" => Some(&mut self.output),
            "cache_read" => Some(&mut self.cache_read),
            "cache_write" => Some(&mut self.cache_write),
            _ => None,
        }
    }
}

impl Value for Price {
    fn kind() -> String {
        "a table of the prices `input`, `output`, `cache_read` and `cache_write`".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            return wrong_type(name, value, problems);
        };
        let (mut price, mut good) = (Self::default(), true);
        for (key, value) in table {
            let shown = format!("`{}` of {name}", key.get_ref().escape_debug());
            let amount = if let Some(part) = price.part(key.get_ref()) {
                Usd::read(&shown, value, problems).map(|amount| *part = amount)
            } else {
                let hint = match nearest(key.get_ref(), PARTS.into_iter()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", PARTS.join(", ")),
                };
                problems.push(key.span().start, format!("{shown} is no price; {hint}"));
                None
            };
            good &= amount.is_some();
        }
        let missing: Vec<_> = PARTS.into_iter().filter(|part| !table.contains_key(*part)).collect();
        if !missing.is_empty() {
            let message = format!("{name} lacks {}; name all four, 0 where it costs nothing", missing.join(", "));
            problems.push(value.span().start, message);
        }
        (good && missing.is_empty()).then_some(price)
    }

    fn to_toml(&self) -> Option<String> {
        let Self { input, output, cache_read, cache_write } = self;
        Some(format!(
            "{{ input = {input}, output = {output}, cache_read = {cache_read}, cache_write = {cache_write} }}"
        ))
    }
}

/// Prices by the beginning of a model's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prices(BTreeMap<String, Price>);

impl Prices {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each beginning of a name, and its price.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Price)> {
        self.0.iter().map(|(name, price)| (name.as_str(), price))
    }

    /// The price of a model: that of the longest beginning of its name.
    pub fn of(&self, model: &str) -> Option<Price> {
        let fitting = self.0.iter().filter(|(name, _)| model.starts_with(name.as_str()));
        fitting.max_by_key(|(name, _)| name.len()).map(|(_, price)| *price)
    }

    /// The highest price of each kind: what a model without a price counts as. Zero when there is none at all.
    pub fn highest(&self) -> Price {
        self.0.values().fold(Price::default(), |highest, price| Price {
            input: highest.input.max(price.input),
            output: highest.output.max(price.output),
            cache_read: highest.cache_read.max(price.cache_read),
            cache_write: highest.cache_write.max(price.cache_write),
        })
    }
}

impl Value for Prices {
    fn kind() -> String {
        "a table of the beginnings of models' names and their prices".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            return wrong_type(name, value, problems);
        };
        let mut prices = BTreeMap::new();
        for (model, value) in table {
            let model_name = model.get_ref().as_ref();
            let shown = format!("`{}` in {name}", model_name.escape_debug());
            if model_name.is_empty() || model_name.contains(|c: char| !c.is_ascii_graphic()) {
                problems.push(model.span().start, format!("{shown} is no beginning of a model's name"));
            } else if let Some(price) = Price::read(&shown, value, problems) {
                prices.insert(model_name.to_owned(), price);
            }
        }
        (prices.len() == table.len()).then_some(Self(prices))
    }

    fn to_toml(&self) -> Option<String> {
        let entry = |(name, price): (&String, &Price)| Some(format!("{} = {}", quoted(name), price.to_toml()?));
        let entries: Vec<_> = self.0.iter().filter_map(entry).collect();
        Some(if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) })
    }
}
