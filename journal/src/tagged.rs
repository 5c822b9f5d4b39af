//! A stored event in the shape that serde expects of an adjacently tagged enum, without writing it
//! out and reading it again.

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;

/// Reads as the map `{"kind": kind, "data": data}`.
#[derive(Clone, Copy)]
pub(crate) struct Tagged<'de> {
    pub(crate) kind: &'de str,
    /// One whole value of JSON.
    pub(crate) data: &'de str,
}

impl<'de> Deserializer<'de> for Tagged<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(Fields { event: self, next: Some(Field::Kind) })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The kind comes first: serde need not keep the data until it knows what it is.
#[derive(Clone, Copy)]
enum Field {
    Kind,
    Data,
}

struct Fields<'de> {
    event: Tagged<'de>,
    next: Option<Field>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let name = match self.next {
            Some(Field::Kind) => "kind",
            Some(Field::Data) => "data",
            None => return Ok(None),
        };
        let name: StrDeserializer<'_, Self::Error> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        match self.next.take() {
            Some(Field::Kind) => {
                self.next = Some(Field::Data);
                seed.deserialize(BorrowedStrDeserializer::new(self.event.kind))
            }
            Some(Field::Data) => seed.deserialize(&mut serde_json::Deserializer::from_str(self.event.data)),
            None => Err(serde::de::Error::custom("value without a key")),
        }
    }
}
