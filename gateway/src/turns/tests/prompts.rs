//! What agents are told, and what rooms hear of that.

use super::*;

#[tokio::test]
async fn a_room_is_told_once_that_the_agent_does_not_hear_all_of_what_was_said() {
    let (sled, mut prompts) = interrupted(ended(1, Outcome::Interrupted));
    let mut stage = Stage::new([Some(sled.clone()), Some(sled)]).await;
    stage.say_as("long", &"x".repeat(512_345), false).await;
    let mut told = Vec::new();
    loop {
        let heard = stage.heard().await;
        told.push(heard.markdown);
        if heard.weight == Weight::Answer {
            break;
        }
    }
    assert_eq!(
        told[0],
        "⚠ That is more than the agent can be told at once: 113 kB were left out of the middle of what is longest.\n\
         Put long texts into files in the workspace, and name those."
    );
    assert_eq!(told.iter().filter(|told| told.contains("left out")).count(), 1, "{told:?}");
    let stream = StreamId::new("outbox", &stage.session.room);
    let sends = stage.journal.read(&stream, 0).await.expect("it is readable");
    let queued: Vec<_> = sends.iter().filter(|event| event.kind == "send.queued").collect();
    assert!(queued.len() > 2, "it was interrupted, and answered");
    for event in queued {
        assert_eq!(event.cause, Cause::Command("long".to_owned()), "{}", event.data.get());
    }
    for _ in 0..2 {
        let prompt = prompts.recv().await.expect("it was asked").prompt;
        assert!(prompt.contains("112345 bytes were left out here"), "it is repeated as it was told");
    }
}
