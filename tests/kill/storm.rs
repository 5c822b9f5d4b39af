//! The inner run: everything is brought up, the person talks while the parts are killed, and when all is quiet again
//! the books are made up.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ::tests::{model::Model, product};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    Options, agent,
    engine::Engine,
    ledger::{PLEASE, Said},
    plan::{Plan, ROOMS, Say},
    record::Record,
    world::World,
};

/// How long after the last answer a second one would have come.
const AFTERMATH: Duration = Duration::from_secs(5);

/// How long one attempt to reach the homeserver may take.
const ATTEMPT: Duration = Duration::from_secs(10);

/// How soon it is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Of so many kills some meet the engine while it starts a container.
const MANY: usize = 200;

/// A long storm says how far it is, each so many kills.
const TOLD_EVERY: usize = 25;

/// Runs the plan of this seed; says how it went, and gives whether everything was as promised.
pub async fn run(engine: Engine, options: &Options, seed: u64) -> Result<bool> {
    let (kills, quiet) = (options.kills, Duration::from_secs(options.quiet_secs));
    let (plan, record) = (Arc::new(Plan::new(seed, kills)), Arc::new(Record::new()));
    let model = Model::start().await?;
    agent::teach(&model, Arc::clone(&plan), Arc::clone(&record));
    let world = Arc::new(World::open(engine, options.agent, &model, Arc::clone(&record)).await?);
    println!("everything is up after {:.1} s; the storm begins", record.now().as_secs_f64());

    let mut background = JoinSet::new();
    background.spawn(listen(Arc::clone(&world), Arc::clone(&record)));
    let supervised = Arc::clone(&world);
    background.spawn(async move { supervised.supervise().await });
    let all = async {
        weather(&world, &plan, &record).await?;
        println!("the storm is over after {:.1} s", record.now().as_secs_f64());
        world.healthy().await?;
        let mut given_up = BTreeSet::new();
        settle(&record, quiet, &mut given_up).await;
        // A gateway that starts anew repeats nothing that it has delivered.
        world.restart().await?;
        // What is said in the calm has no kill to excuse a failure.
        let calm_from = record.ledger().calm_from();
        tokio::time::sleep(calm_from.saturating_sub(record.now())).await;
        for say in &plan.calm {
            speak(&world, &record, *say).await;
            settle(&record, quiet, &mut given_up).await;
        }
        tokio::time::sleep(AFTERMATH).await;
        world.stop().await?;
        world.audit().await?;
        world.inspect().await
    };
    let ended = tokio::select! {
        ended = all => ended,
        Some(ended) = background.join_next() => ended?.and_then(|()| anyhow::bail!("a part of the test ended early")),
    };
    background.shutdown().await;
    let verdict = record.ledger().judge();
    let unseen = world.unseen()?;
    println!("{verdict}{unseen} sleds ran unseen, and were ended");
    if kills >= MANY {
        ensure!(
            unseen > 0,
            "not one of {kills} kills made the engine lose sight of a container: is the log read rightly?"
        );
    }
    println!("seed {seed}; {:.1} s in all", record.now().as_secs_f64());
    if ended.is_err() || !verdict.is_clean() {
        let folder = product::kept()?.join(format!("kill-{seed}"));
        world.keep(&folder).await.with_context(|| format!("nothing could be kept in {}", folder.display()))?;
        println!("journal and logs of the gateway, the engine's log, what agents remember: {}", folder.display());
    }
    ended?;
    let spared = record.ledger().spared(plan.kills.iter().map(|kill| kill.target));
    ensure!(spared.is_empty(), "of these none was killed, though their turn came: {spared:?}");
    Ok(verdict.is_clean())
}

/// Messages and kills, each at its moment, until all have happened and every part is started again.
async fn weather(world: &Arc<World>, plan: &Arc<Plan>, record: &Arc<Record>) -> Result<()> {
    let begin = tokio::time::Instant::now();
    let mut all = JoinSet::new();
    for room in 0..ROOMS {
        let (world, plan, record) = (Arc::clone(world), Arc::clone(plan), Arc::clone(record));
        all.spawn(async move {
            // One after another: a room's messages keep their order, also while the homeserver is away.
            for say in plan.messages.iter().filter(|say| say.room == room) {
                tokio::time::sleep_until(begin + say.at).await;
                speak(&world, &record, *say).await;
            }
            Ok(())
        });
    }
    for (number, kill) in (1..).zip(&plan.kills) {
        tokio::time::sleep(kill.pause).await;
        let (world, kill) = (Arc::clone(world), *kill);
        all.spawn(async move {
            let what = kill.target;
            world.kill(what, kill.down).await.with_context(|| format!("{what} could not be killed and brought back"))
        });
        if number % TOLD_EVERY == 0 {
            println!("{number} of {} kills after {:.0} s", plan.kills.len(), begin.elapsed().as_secs_f64());
        }
    }
    while let Some(ended) = all.join_next().await {
        ended??;
    }
    Ok(())
}

/// Says it until the homeserver has taken it, always under the same transaction.
async fn speak(world: &World, record: &Record, say: Say) {
    let at = record.now();
    let (room, number) = (&world.rooms[say.room], say.number);
    let content = json!({ "msgtype": "m.text", "body": format!("m{number}{PLEASE}") });
    let transaction = format!("m{number}");
    loop {
        let attempt = world.ann.send_as(room, &transaction, &content);
        if let Ok(Ok(event)) = tokio::time::timeout(ATTEMPT, attempt).await {
            return record.said(Said { number, room: say.room, event, at });
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Writes down for ever what the bot says.
async fn listen(world: Arc<World>, record: Arc<Record>) -> Result<()> {
    loop {
        // The homeserver may be away.
        let Ok(Ok(news)) = tokio::time::timeout(ATTEMPT, world.ann.listen()).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        for (room, message) in news.iter().filter(|(_, message)| message.sender == world.bot.id) {
            if let Some(room) = world.rooms.iter().position(|known| known == room) {
                record.heard(room, message);
            }
        }
    }
}

/// Waits until every message is settled that was not given up before, or nothing has come for `quiet`: then gives up.
async fn settle(record: &Record, quiet: Duration, given_up: &mut BTreeSet<u32>) {
    let (mut seen, mut since) = (usize::MAX, record.now());
    loop {
        let (mut open, heard) = {
            let ledger = record.ledger();
            (ledger.open(), ledger.heard.len())
        };
        open.retain(|number| !given_up.contains(number));
        if open.is_empty() {
            return;
        }
        if heard != seen {
            (seen, since) = (heard, record.now());
        }
        if record.now() > since + quiet {
            println!("nothing has come for {} s, and these are open: {open:?}", quiet.as_secs());
            given_up.extend(open);
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
