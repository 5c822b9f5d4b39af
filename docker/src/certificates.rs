//! A bundle of certificates, split into the one-a-file form that the system's trust store wants.

use crate::PlanError;

const BEGIN: &str = "-----BEGIN ";
const CERTIFICATE: &str = "CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of a PEM bundle, each with its BEGIN and END line, in their order and without the text between.
///
/// # Errors
/// When there is none, when one has no end, or when something else is among them: a private key must never get into
/// an image (invariant 7).
pub(crate) fn split(bundle: &[u8]) -> Result<Vec<String>, PlanError> {
    let text = str::from_utf8(bundle).map_err(|_| PlanError::CertificatesNotPem)?;
    let mut certificates = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines().map(str::trim_end) {
        if let Some(kind) = line.strip_prefix(BEGIN) {
            if kind != CERTIFICATE {
                return Err(PlanError::CertificatesWithOther(kind.trim_end_matches('-').to_owned()));
            }
            if open.is_some() {
                return Err(PlanError::CertificatesNotPem);
            }
            open = Some(String::new());
        }
        if let Some(certificate) = &mut open {
            certificate.push_str(line);
            certificate.push('\n');
        }
        if line == END {
            certificates.push(open.take().ok_or(PlanError::CertificatesNotPem)?);
        }
    }
    if open.is_some() || certificates.is_empty() {
        return Err(PlanError::CertificatesNotPem);
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_bundle_is_split() {
        let bundle = format!("# a comment\n{ONE}\nsubject=x\r\n{}", ONE.replace("AAAA", "BBBB"));
        assert_eq!(split(bundle.as_bytes()).expect("a bundle"), [ONE.to_owned(), ONE.replace("AAAA", "BBBB")]);
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let key = format!("{ONE}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        assert!(matches!(split(key.as_bytes()), Err(PlanError::CertificatesWithOther(kind)) if kind == "PRIVATE KEY"));
        for text in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n",
            "-----END CERTIFICATE-----\n",
            &format!("-----BEGIN CERTIFICATE-----\n{ONE}"),
        ] {
            assert!(matches!(split(text.as_bytes()), Err(PlanError::CertificatesNotPem)), "{text:?}");
        }
    }
}
