use std::time::Duration;

use super::*;
use crate::ca::CertificateAuthority;
use crate::identity::WorkloadCertificate;
use crate::spiffe::SpiffeId;

const HOUR: Duration = Duration::from_secs(3600);

fn id() -> SpiffeId {
    SpiffeId::workload("cluster.local", "demo", "web")
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::generate("test").unwrap().with_backdate(Duration::ZERO)
}

fn bundle(authorities: &[&CertificateAuthority]) -> TrustBundle {
    TrustBundle::new("test", authorities.iter().map(|authority| authority.root_der()).collect()).unwrap()
}

fn check(roots: &TrustBundle, certificate: &WorkloadCertificate, now: SystemTime) -> Result<(), VerifyError> {
    roots.verify(&certificate.chain[0], &certificate.chain[1..], Usage::Client, now)
}

#[test]
fn chain_verifies_for_both_ends_without_dns_name() {
    let authority = authority();
    let certificate = authority.issue(&id(), HOUR).unwrap();
    let roots = bundle(&[&authority]);
    for usage in [Usage::Client, Usage::Server] {
        assert_eq!(roots.verify(&certificate.chain[0], &[], usage, SystemTime::now()), Ok(()));
    }
}

#[test]
fn any_of_several_roots_will_do() {
    let (old, new) = (authority(), authority());
    let roots = bundle(&[&old, &new]);
    for authority in [&old, &new] {
        assert_eq!(check(&roots, &authority.issue(&id(), HOUR).unwrap(), SystemTime::now()), Ok(()));
    }
    assert_eq!(bundle(&[&old, &old]).roots().len(), 1);
}

#[test]
fn errors_have_the_words_of_envoy() {
    let (ours, theirs) = (authority(), authority());
    let roots = bundle(&[&ours]);
    let now = SystemTime::now();
    let certificate = ours.issue_from(&id(), now, HOUR).unwrap();
    let cases = [
        (certificate.clone(), now + 2 * HOUR, VerifyError::Expired, "certificate has expired"),
        (certificate, now - HOUR, VerifyError::NotYetValid, "certificate is not yet valid"),
        (
            theirs.issue(&id(), HOUR).unwrap(),
            now,
            VerifyError::UnknownIssuer,
            "unable to get local issuer certificate",
        ),
    ];
    for (certificate, now, expected, words) in cases {
        let error = check(&roots, &certificate, now).unwrap_err();
        assert_eq!(error, expected);
        let text = format!("X509_verify_cert: certificate verification error at depth 0: {words}");
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn changed_certificate_has_a_bad_signature() {
    let authority = authority();
    let certificate = authority.issue(&id(), HOUR).unwrap();
    let mut bytes = certificate.chain[0].to_vec();
    let at = bytes.windows(3).position(|window| window == b"web").unwrap();
    bytes[at] = b'v';
    let changed = CertificateDer::from(bytes);
    let error = bundle(&[&authority]).verify(&changed, &[], Usage::Client, SystemTime::now());
    assert_eq!(error, Err(VerifyError::BadSignature));
}

#[test]
fn self_signed_leaf_is_told_apart() {
    let own = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    let error = bundle(&[&authority()]).verify(own.cert.der(), &[], Usage::Server, SystemTime::now());
    assert_eq!(error, Err(VerifyError::SelfSigned));
}

#[test]
fn revoked_certificate_is_refused_and_others_pass() {
    let authority = authority();
    let unlisted = CertificateAuthority::generate("other").unwrap();
    let bad = authority.issue(&id(), HOUR).unwrap();
    let good = authority.issue(&id(), HOUR).unwrap();
    let list = authority.revocation_list(&[&bad]).unwrap();
    let roots = bundle(&[&authority, &unlisted]).with_crls("crl.pem", list.as_bytes()).unwrap();
    let now = SystemTime::now();
    assert_eq!(check(&roots, &bad, now), Err(VerifyError::Revoked));
    assert_eq!(check(&roots, &good, now), Ok(()));
    assert_eq!(check(&roots, &unlisted.issue(&id(), HOUR).unwrap(), now), Ok(()));
}

#[test]
fn bytes_that_are_no_certificate_are_an_error() {
    let roots = bundle(&[&authority()]);
    let error = roots.verify(&CertificateDer::from(vec![1, 2, 3]), &[], Usage::Server, SystemTime::now());
    assert!(matches!(error, Err(VerifyError::Other(_))), "{error:?}");
    assert!(TrustBundle::from_pem("root.pem", b"x").unwrap_err().to_string().starts_with("root.pem: "));
}
