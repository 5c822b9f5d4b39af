//! What happens when: which message in which room, which part is killed and for how long it stays away.
//!
//! Pure: everything follows from the seed, so that a run can be repeated. Moments are counted from the beginning of
//! the storm; what really happens then is the world's.

use std::time::Duration;

/// Projects of a run.
pub const PROJECTS: usize = 2;

/// Rooms of a run; each talks about one project.
pub const ROOMS: usize = 4;

/// The project that a room talks about.
pub fn project_of(room: usize) -> usize {
    room % PROJECTS
}

/// The parts that can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The gateway's process.
    Gateway,
    /// The sled's process in a project's container.
    Sled(usize),
    /// The agent's process of a project, when one runs.
    Agent(usize),
    /// A project's container, by the engine.
    Container(usize),
    /// The private engine.
    Engine,
    /// The private engine while it starts a project's container, which is killed for that.
    Start(usize),
    /// The homeserver.
    Homeserver,
}

impl Target {
    /// Whether a project's turns cannot go on without it.
    pub fn touches(self, project: usize) -> bool {
        match self {
            Self::Sled(of) | Self::Agent(of) | Self::Container(of) => of == project,
            Self::Engine | Self::Start(_) => true,
            Self::Gateway | Self::Homeserver => false,
        }
    }

    /// Whether its end interrupts the attempt that runs on a project. The container that is killed for [`Target::Start`]
    /// counts by itself, and nothing runs in it until the engine is back.
    pub fn interrupts(self, project: usize) -> bool {
        match self {
            Self::Sled(of) | Self::Container(of) => of == project,
            Self::Start(of) => of != project,
            Self::Engine => true,
            Self::Agent(_) | Self::Gateway | Self::Homeserver => false,
        }
    }

    /// Whether it is of the same kind, be it of another project.
    pub fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gateway => f.write_str("gateway"),
            Self::Sled(project) => write!(f, "sled of {}", project_name(*project)),
            Self::Agent(project) => write!(f, "agent of {}", project_name(*project)),
            Self::Container(project) => write!(f, "container of {}", project_name(*project)),
            Self::Engine => f.write_str("engine"),
            Self::Start(project) => write!(f, "engine at the start of {}", project_name(*project)),
            Self::Homeserver => f.write_str("homeserver"),
        }
    }
}

/// The name of a project.
pub fn project_name(project: usize) -> String {
    format!("storm{project}")
}

/// A part is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// After the kill before, or the beginning.
    pub pause: Duration,
    /// What.
    pub target: Target,
    /// How long it stays away, where it stays down.
    pub down: Duration,
}

/// How much the stand-in makes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// An answer after so many milliseconds.
    Say(u64),
    /// A tool that takes so many milliseconds, and then the answer.
    Work(u64),
}

/// Somebody says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Say {
    /// From the beginning of the storm.
    pub at: Duration,
    /// In which room.
    pub room: usize,
    /// The message's number, which its text and its answer carry.
    pub number: u32,
    /// What it costs to answer.
    pub effort: Effort,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In order of time.
    pub messages: Vec<Say>,
    /// In order.
    pub kills: Vec<Kill>,
    /// Said when the storm is over and everything is settled, one after another: undisturbed turns.
    pub calm: Vec<Say>,
}

/// How often each kind is killed, in parts of the sum.
const WEIGHTS: [(Kind, u64); 7] = [
    (Kind::Gateway, 7),
    (Kind::Sled, 3),
    (Kind::Agent, 3),
    (Kind::Container, 3),
    (Kind::Engine, 2),
    (Kind::Start, 2),
    (Kind::Homeserver, 2),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Gateway,
    Sled,
    Agent,
    Container,
    Engine,
    Start,
    Homeserver,
}

impl Plan {
    /// The plan of this seed with so many kills.
    pub fn new(seed: u64, kills: usize) -> Self {
        // Two streams, so that a longer storm begins like a shorter one.
        let (mut dice, mut words) = (Dice(seed), Dice(seed ^ 0x5851_f42d_4c95_7f2d));
        // Each kind once before any is drawn by its weight: also a short storm leaves no part alive.
        let mut kinds: Vec<Kind> = WEIGHTS.iter().map(|(kind, _)| *kind).collect();
        let mut first = Vec::new();
        while !kinds.is_empty() {
            let drawn = usize::try_from(dice.below(kinds.len() as u64)).unwrap_or(0);
            first.push(kinds.swap_remove(drawn));
        }
        let mut first = first.into_iter();
        let kills: Vec<Kill> = (0..kills).map(|_| Kill::throw(&mut dice, first.next())).collect();
        let storm: Duration = kills.iter().map(|kill| kill.pause).sum();
        let (mut messages, mut at) = (Vec::new(), Duration::ZERO);
        while at < storm {
            messages.push(Say::throw(&mut words, at, messages.len()));
            // Bursts and lulls: half of the pauses are shorter than a person's coalescing window.
            at += match words.below(2) {
                0 => words.millis(40, 900),
                _ => words.millis(900, 3000),
            };
        }
        let calm = (0..ROOMS).map(|room| Say {
            at: storm,
            room,
            number: number(messages.len() + room),
            effort: if room % 2 == 0 { Effort::Say(words.below(400)) } else { Effort::Work(words.below(400)) },
        });
        let calm = calm.collect();
        Self { messages, kills, calm }
    }

    /// What a message costs.
    pub fn effort(&self, number: u32) -> Option<Effort> {
        self.messages.iter().chain(&self.calm).find(|say| say.number == number).map(|say| say.effort)
    }
}

impl Kind {
    fn throw(dice: &mut Dice) -> Self {
        let sum = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut rest = dice.below(sum);
        for (kind, weight) in WEIGHTS {
            if rest < weight {
                return kind;
            }
            rest -= weight;
        }
        Self::Gateway
    }
}

impl Kill {
    /// A kill of this kind, or of one that is drawn.
    fn throw(dice: &mut Dice, kind: Option<Kind>) -> Self {
        let kind = kind.unwrap_or_else(|| Kind::throw(dice));
        let project = usize::try_from(dice.below(PROJECTS as u64)).unwrap_or(0);
        let target = match kind {
            Kind::Gateway => Target::Gateway,
            Kind::Sled => Target::Sled(project),
            Kind::Agent => Target::Agent(project),
            Kind::Container => Target::Container(project),
            Kind::Engine => Target::Engine,
            Kind::Start => Target::Start(project),
            Kind::Homeserver => Target::Homeserver,
        };
        Self { pause: dice.millis(300, 4000), target, down: dice.millis(50, 2500) }
    }
}

impl Say {
    fn throw(dice: &mut Dice, at: Duration, index: usize) -> Self {
        let room = usize::try_from(dice.below(ROOMS as u64)).unwrap_or(0);
        let effort = match dice.below(4) {
            0 => Effort::Work(200 + dice.below(1500)),
            _ => Effort::Say(dice.below(1200)),
        };
        Self { at, room, number: number(index), effort }
    }
}

/// Messages are numbered from one.
fn number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

/// splitmix64: small, and the same everywhere and for ever.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is small: the remainder's bias does not matter.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(Plan::new(7, 20), Plan::new(7, 20));
        assert_ne!(Plan::new(7, 20), Plan::new(8, 20));
    }

    #[test]
    fn a_longer_storm_begins_like_a_shorter_one() {
        let (short, long) = (Plan::new(7, 20), Plan::new(7, 200));
        assert_eq!(long.kills[..20], short.kills);
        assert_eq!(long.messages[..short.messages.len()], short.messages);
    }

    #[test]
    fn a_short_storm_leaves_no_part_alive() {
        for seed in 0..50 {
            let kills = Plan::new(seed, WEIGHTS.len()).kills;
            let kinds: BTreeSet<_> =
                kills.iter().map(|kill| std::mem::discriminant(&kill.target)).map(|kind| format!("{kind:?}")).collect();
            assert_eq!(kinds.len(), WEIGHTS.len(), "seed {seed}: {kills:?}");
        }
    }

    #[test]
    fn everything_is_killed_and_every_room_is_spoken_in() {
        for seed in 0..50 {
            let plan = Plan::new(seed, 200);
            assert_eq!(plan.kills.len(), 200);
            let killed: BTreeSet<Target> = plan.kills.iter().map(|kill| kill.target).collect();
            assert_eq!(killed.len(), 3 + 4 * PROJECTS, "seed {seed}: {killed:?}");
            let rooms: BTreeSet<usize> = plan.messages.iter().map(|say| say.room).collect();
            assert_eq!(rooms.len(), ROOMS, "seed {seed}");
            for kill in &plan.kills {
                assert!((300..4000).contains(&kill.pause.as_millis()), "{kill:?}");
            }
        }
    }

    #[test]
    fn numbers_are_given_once_and_in_order() {
        let plan = Plan::new(3, 20);
        let numbers: Vec<u32> = plan.messages.iter().chain(&plan.calm).map(|say| say.number).collect();
        assert!(numbers.iter().copied().eq(1..=u32::try_from(numbers.len()).expect("they are few")), "{numbers:?}");
        assert!(plan.messages.is_sorted_by_key(|say| say.at));
        assert!(plan.messages.len() >= 20, "{}", plan.messages.len());
    }
}
