//! JRNL-3: bytes are kept, known kinds decode or are an error, older versions are lifted.

use journal::{DecodeError, Decoded, DomainEvent, EncodeError, Expected, NewEvent, ReadError, Recorded, UpcastError};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::fixture::{Counter, CounterEvent, OnDisk, added, append_raw, counter, raw};

async fn stored(events: Vec<NewEvent>) -> (OnDisk, Vec<Recorded>) {
    let disk = OnDisk::new();
    disk.journal.append(append_raw(&counter("a"), Expected::Any, events)).await.unwrap();
    let stored = disk.journal.read(&counter("a"), 0).await.unwrap();
    (disk, stored)
}

#[tokio::test]
async fn an_unknown_kind_is_kept_byte_for_byte() {
    let texts = [
        "{ \"b\" : 1.0,\n\t\"a\":[1e3, \"\\u00e9é\\u0000\"] , \"a\":-0 }",
        "12345678901234567890123456789012345678901234567890.10",
        "null",
        "\"\\/\"",
    ];
    let events = texts.map(|text| raw("future.happened", 7, false, text));
    let (_disk, stored) = stored(events.to_vec()).await;
    for (event, text) in stored.iter().zip(texts) {
        assert_eq!((event.data.get(), event.kind_version), (text, 7));
        assert_eq!(event.decode::<CounterEvent>().unwrap(), Decoded::Unknown);
    }
    assert_eq!(stored.len(), texts.len());
}

#[tokio::test]
async fn a_known_kind_that_does_not_decode_is_an_error() {
    let cases = [
        ("counter.added", 1, false, r#"{"amount":"many"}"#),
        ("counter.added", 1, false, "{}"),
        ("counter.added", 1, false, "null"),
        ("counter.labelled", 1, false, "null"),
        // Not even then: its writer meant programs that do not know the kind.
        ("counter.added", 1, true, r#"{"amount":-1}"#),
    ];
    for (kind, version, skippable, data) in cases {
        let (disk, stored) = stored(vec![raw(kind, version, skippable, data)]).await;
        let error = stored[0].decode::<CounterEvent>().unwrap_err();
        assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
        let error = disk.journal.load::<Counter>(&counter("a")).await.unwrap_err();
        assert!(matches!(error, ReadError::Decode { version: 1, .. }), "{error}");
    }
    let newer = raw("counter.added", 2, true, r#"{"amount":1}"#);
    let (disk, stored) = stored(vec![newer]).await;
    let error = stored[0].decode::<CounterEvent>().unwrap_err();
    insta::assert_snapshot!(error, @"counter.added is of version 2, this program reads up to version 1");
    let error = disk.journal.load::<Counter>(&counter("a")).await.unwrap_err();
    insta::assert_snapshot!(error, @"event 1 of stream counter/a does not decode");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn typed_events_come_back_as_they_went(labels in prop::collection::vec(any::<String>(), 1..20)) {
        let events: Vec<_> = labels
            .into_iter()
            .map(CounterEvent::Labelled)
            .chain([CounterEvent::Reset, added(u64::MAX), added(0)])
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_disk, stored) = runtime.block_on(stored(NewEvent::encode_all(&events).unwrap()));
        let decoded: Vec<_> = stored.iter().map(|event| event.decode().unwrap()).collect();
        let expected: Vec<_> = events.into_iter().map(Decoded::Known).collect();
        prop_assert_eq!(decoded, expected);
    }
}

/// Version 1 held a bare number of euros, version 2 `{"cents"}`, version 3 has the currency too.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
enum PriceEvent {
    #[serde(rename = "price.set")]
    Set { cents: u64, currency: String },
}

impl DomainEvent for PriceEvent {
    const KINDS: &'static [&'static str] = &["price.set"];

    fn version(_: &str) -> u32 {
        3
    }

    fn skippable(kind: &str) -> bool {
        kind == "price.set"
    }

    fn upcast(_: &str, version: u32, mut data: Value) -> Result<Value, UpcastError> {
        match version {
            1 => Ok(json!({ "cents": data.as_u64().ok_or("not a number")? * 100 })),
            2 => {
                data["currency"] = json!("EUR");
                Ok(data)
            }
            _ => Err("no such version".into()),
        }
    }
}

#[tokio::test]
async fn older_versions_are_lifted_step_by_step() {
    let new = PriceEvent::Set { cents: 700, currency: "CHF".to_owned() };
    let (_disk, stored) = stored(vec![
        raw("price.set", 1, false, "7"),
        raw("price.set", 2, false, r#"{"cents":701}"#),
        NewEvent::encode(&new).unwrap(),
        raw("price.set", 1, false, r#""seven""#),
        raw("price.set", 0, false, "7"),
    ])
    .await;
    let euros = |cents| Decoded::Known(PriceEvent::Set { cents, currency: "EUR".to_owned() });
    assert_eq!(stored[0].decode().unwrap(), euros(700));
    assert_eq!(stored[1].decode().unwrap(), euros(701));
    assert_eq!(stored[2].decode().unwrap(), Decoded::Known(new));
    assert_eq!((stored[2].kind_version, stored[2].skippable), (3, true));
    assert_eq!((stored[0].kind_version, stored[0].data.get()), (1, "7"), "the log stays as it is");
    for (bad, step) in [(3, 1), (4, 0)] {
        let error = stored[bad].decode::<PriceEvent>().unwrap_err();
        assert!(matches!(error, DecodeError::Upcast { version, .. } if version == step), "{error}");
    }
    let nothing_lifts = CounterEvent::upcast("counter.added", 1, Value::Null).unwrap_err();
    insta::assert_snapshot!(nothing_lifts, @"nothing lifts counter.added from version 1");
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
enum Mistaken {
    #[serde(rename = "thing.unlisted")]
    Unlisted,
    CamelCase,
}

impl DomainEvent for Mistaken {
    const KINDS: &'static [&'static str] = &["CamelCase"];
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Inside {
    #[serde(rename = "thing.happened")]
    Happened { amount: u64 },
}

impl DomainEvent for Inside {
    const KINDS: &'static [&'static str] = &["thing.happened"];
}

#[test]
fn mistaken_types_are_refused_before_they_are_written() {
    let unlisted = NewEvent::encode(&Mistaken::Unlisted).unwrap_err();
    insta::assert_snapshot!(unlisted, @r#"kind "thing.unlisted" is not in its type's list of kinds"#);
    let misnamed = NewEvent::encode(&Mistaken::CamelCase).unwrap_err();
    insta::assert_snapshot!(misnamed, @r#"kind "CamelCase" is not of the form noun.past_tense"#);
    let inside = NewEvent::encode(&Inside::Happened { amount: 1 }).unwrap_err();
    assert!(matches!(inside, EncodeError::NotTagged(_)), "{inside}");
    let null = serde_json::value::RawValue::NULL;
    for name in ["", ".", "a", "a.", ".a", "a.b.c", "A.b", "a b.c", "1a.b", "a.b'"] {
        let refused = NewEvent::raw(name, 1, false, null.to_owned()).unwrap_err();
        assert!(matches!(refused, EncodeError::KindName { .. }), "{name}");
    }
    NewEvent::raw("tool.call_started2", 1, false, null.to_owned()).unwrap();
}

#[tokio::test]
async fn a_spoilt_column_is_an_error() {
    let (disk, _) = stored(NewEvent::encode_all(&[added(1)]).unwrap()).await;
    disk.stranger().execute_batch("DROP TRIGGER events_stand; UPDATE events SET actor = 'nobody'").unwrap();
    let error = disk.journal.read(&counter("a"), 0).await.unwrap_err();
    insta::assert_snapshot!(error, @"event at position 1 has an unreadable actor");
}
