//! Numbers with a unit: time, memory, processors.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::error::ValueError;
use crate::value::{Problems, Text, Value, wrong_type};

/// Longer waits are mistakes, and far longer ones would overflow a clock.
const WEEK_SECS: u32 = 7 * 24 * 60 * 60;

/// The longest that the sled keeps an agent's process.
const DAY_SECS: u32 = 24 * 60 * 60;

/// Nobody waits so long in a chat; the longest that the sled lets a turn go on that is stopped.
const TEN_MINUTES_MS: u32 = 10 * 60 * 1000;

/// A time in milliseconds, at most ten minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub(crate) u32);

/// A time in seconds, at least one, at most a week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secs(pub(crate) u32);

/// A time in seconds, at most a day; zero stands for "not at all".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SecsOrZero(pub(crate) u32);

impl Millis {
    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.0.into())
    }
}

impl Secs {
    pub(crate) fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl SecsOrZero {
    pub(crate) fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

macro_rules! whole_numbers {
    ($($T:ty: $kind:expr, $accept:expr, $show:expr;)+) => {$(
        impl Value for $T {
            fn kind() -> String {
                $kind
            }

            fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
                let DeValue::Integer(integer) = value.get_ref() else {
                    return wrong_type(name, value, problems);
                };
                let accept: fn(u64) -> Option<Self> = $accept;
                let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
                let accepted = number.and_then(accept);
                if accepted.is_none() {
                    problems.push(value.span().start, format!("{name} must be {}", $kind));
                }
                accepted
            }

            fn to_toml(&self) -> Option<String> {
                let show: fn(Self) -> u64 = $show;
                Some(show(*self).to_string())
            }
        }
    )+};
}

whole_numbers! {
    NonZeroU16: format!("a whole number, 1 to {}", u16::MAX),
        |n| Self::new(u16::try_from(n).ok()?), |n| n.get().into();
    // The kernel takes the last one for "no user".
    NonZeroU32: format!("a whole number, 1 to {}", u32::MAX - 1),
        |n| Self::new(u32::try_from(n).ok()?).filter(|n| n.get() < u32::MAX), |n| n.get().into();
    NonZeroU64: format!("a whole number, 1 to {}", i64::MAX),
        |n| Self::new(n).filter(|_| i64::try_from(n).is_ok()), Self::get;
    Millis: format!("a number of milliseconds, 0 to {TEN_MINUTES_MS}"),
        |n| u32::try_from(n).ok().filter(|&n| n <= TEN_MINUTES_MS).map(Self), |millis| millis.0.into();
    Secs: format!("a number of seconds, 1 to {WEEK_SECS}"),
        |n| u32::try_from(n).ok().filter(|n| (1..=WEEK_SECS).contains(n)).map(Self), |secs| secs.0.into();
    SecsOrZero: format!("a number of seconds, 0 to {DAY_SECS}"),
        |n| u32::try_from(n).ok().filter(|&n| n <= DAY_SECS).map(Self), |secs| secs.0.into();
}

/// Memory for a container: at least 256 MiB. Written as the engine writes it, `512m`, `4g`, `2GiB`: units are powers of
/// 1024 whether they end in nothing, `b` or `ib`, in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

impl Memory {
    /// The least that is accepted.
    pub const MIN: Self = Self(256 << 20);

    /// From bytes; nothing below [`Memory::MIN`] or above what the engine can take (`i64::MAX`).
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        (bytes >= Self::MIN.0 && i64::try_from(bytes).is_ok()).then_some(Self(bytes))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "t"), (30, "g"), (20, "m"), (10, "k")];
        match units.iter().find(|(shift, _)| self.0.is_multiple_of(1 << shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}b", self.0),
        }
    }
}

impl FromStr for Memory {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "b" => Some(0),
            "k" | "kb" | "kib" => Some(10),
            "m" | "mb" | "mib" => Some(20),
            "g" | "gb" | "gib" => Some(30),
            "t" | "tb" | "tib" => Some(40),
            _ => None,
        };
        shift
            .zip(number.parse::<u64>().ok())
            .and_then(|(shift, number)| number.checked_mul(1 << shift))
            .and_then(Self::from_bytes)
            .ok_or_else(|| ValueError::must_be(Self::shape()))
    }
}

impl Text for Memory {
    fn shape() -> String {
        "a size such as \"512m\" or \"4g\", at least 256m".to_owned()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

/// A share of the host's processors: 0.01 to 1024 of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpus(f64);

impl Cpus {
    /// In billionths of a processor, the engine's unit.
    #[expect(clippy::cast_possible_truncation, reason = "between 10^7 and about 10^12 by construction")]
    pub fn nano_cpus(self) -> i64 {
        (self.0 * 1e9).round() as i64
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cpus {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = text.parse().ok();
        number
            .filter(|number| (0.01..=1024.0).contains(number))
            .map(Self)
            .ok_or_else(|| ValueError::must_be(Self::kind()))
    }
}

impl Value for Cpus {
    fn kind() -> String {
        "a number of processors such as 1.5, from 0.01 to 1024".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let parsed = match value.get_ref() {
            DeValue::Float(float) => float.as_str().parse(),
            DeValue::Integer(integer) => integer.to_string().parse(),
            _ => return wrong_type(name, value, problems),
        };
        parsed
            .map_err(|error: ValueError| {
                problems.push(value.span().start, format!("{name} {error}"));
            })
            .ok()
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}
