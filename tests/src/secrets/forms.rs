//! The forms in which a secret may turn up. Those that come of where it stands in what was encoded are all there.

use anyhow::{Context as _, Result};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use ssh_key::PrivateKey;

use super::{Form, SHORTEST};

/// The forms of a value.
pub(super) fn of_bytes(value: &[u8]) -> Vec<(Vec<u8>, Form)> {
    let mut forms = vec![(value.to_vec(), Form::Plain)];
    for before in 0..3 {
        // Of the digits only those are the value's own into which no bit of what stands beside it comes.
        let padded = [&[0; 2][..before], value].concat();
        let own = (before * 8).div_ceil(6)..padded.len() * 8 / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            forms.push((engine.encode(&padded).as_bytes()[own.clone()].to_vec(), Form::Base64));
        }
    }
    forms.push((hex::encode(value).into_bytes(), Form::Hex));
    forms.push((hex::encode_upper(value).into_bytes(), Form::Hex));
    forms.push((percent_encode(value, NON_ALPHANUMERIC).to_string().into_bytes(), Form::Percent));
    forms
}

/// The forms of a private key: those of the secret number in it, and the lines of the file. The first line is the same in all of them.
pub(super) fn of_key(key: &str) -> Result<Vec<(Vec<u8>, Form)>> {
    let parsed = PrivateKey::from_openssh(key).context("a private key of OpenSSH's")?;
    let pair = parsed.key_data().ed25519().context("an ed25519 key without a passphrase")?;
    let mut forms = of_bytes(&pair.private.to_bytes());
    let lines = key.lines().filter(|line| !line.starts_with("-----")).skip(1);
    forms.extend(lines.filter(|line| line.len() >= SHORTEST).map(|line| (line.as_bytes().to_vec(), Form::Plain)));
    Ok(forms)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn found(value: &[u8], text: &str) -> Vec<Form> {
        let within = |form: &Vec<u8>| text.as_bytes().windows(form.len()).any(|window| window == form);
        of_bytes(value).into_iter().filter(|(form, _)| within(form)).map(|(_, form)| form).collect()
    }

    #[test]
    fn a_value_is_found_wherever_it_stands_in_what_was_encoded() {
        let value = b"p/s+w?r~d\xff\xfe:0123";
        for before in ["", "u", "us", "use", "user:"] {
            for after in ["", "@", "@h", "@ho"] {
                let whole = [before.as_bytes(), value, after.as_bytes()].concat();
                for encoded in [STANDARD.encode(&whole), URL_SAFE_NO_PAD.encode(&whole)] {
                    assert!(found(value, &encoded).contains(&Form::Base64), "{before}…{after}: {encoded}");
                }
                assert!(found(value, &hex::encode(&whole)).contains(&Form::Hex));
                assert!(found(value, &percent_encode(&whole, NON_ALPHANUMERIC).to_string()).contains(&Form::Percent));
            }
        }
        assert_eq!(found(value, &STANDARD.encode("p/s+w?r~d and something else")), []);
    }

    #[test]
    fn of_a_key_what_is_public_is_no_form() -> Result<()> {
        let make = || -> Result<(String, String)> {
            let seed: [u8; 32] = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()]
                .concat()
                .try_into()
                .map_err(|_| anyhow::anyhow!("two halves"))?;
            let pair = ssh_key::private::Ed25519Keypair::from_seed(&seed);
            let key = PrivateKey::from(pair);
            Ok((key.to_openssh(ssh_key::LineEnding::LF)?.to_string(), key.public_key().to_openssh()?))
        };
        let ((one, public), (other, _)) = (make()?, make()?);
        let forms = of_key(&one)?;
        let shown = |text: &str, form: &[u8]| text.as_bytes().windows(form.len()).any(|window| window == form);
        assert!(forms.iter().filter(|(form, _)| shown(&one, form)).count() >= 4);
        for text in [&public, &other] {
            assert!(!forms.iter().any(|(form, _)| shown(text, form)), "{text}");
        }
        assert!(of_key(&public).is_err());
        Ok(())
    }
}
