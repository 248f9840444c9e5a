//! Whom the server that plays Google's part believes: by a token, or by a signature (V4: the canonical request, RS256,
//! the time by its own clock); and those who give them: the metadata server, the token exchange, IAM.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, LazyLock, atomic::Ordering},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa,
    signature::{self, KeyPair},
};
use axum::response::IntoResponse;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chrono::{DateTime, NaiveDateTime, Utc};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::gcs_server::{Answer, Asked, Google, Refusal, escaped, hex, pairs, plain, refuse, said};

/// The service account that may use it.
pub(crate) const ACCOUNT: &str = "berth@project.iam.gserviceaccount.com";
/// What the workload identity pool is called, and what it takes for a token of somebody else's.
pub(crate) const POOL: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
pub(crate) const SUBJECT: &str = "a token of somebody else's";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The account's own key, and the one that IAM keeps for it. Making them takes a while.
static KEYS: LazyLock<[Arc<rsa::KeyPair>; 2]> =
    LazyLock::new(|| [(); 2].map(|()| Arc::new(rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap())));

/// The JSON of the account's key, as Google gives it out.
pub(crate) fn key_file() -> String {
    let der: Pkcs8V1Der<'_> = KEYS[0].as_der().unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
    let file = json!({
        "type": "service_account", "project_id": "project", "private_key_id": "0123", "private_key": pem,
        "client_email": ACCOUNT, "client_id": "1", "token_uri": "https://oauth2.googleapis.com/token",
    });
    file.to_string()
}

/// Who asks: by a token, or by a signature.
pub(crate) fn believed(google: &Google, asked: &Asked) -> Result<String, Refusal> {
    let who = match asked.header("authorization").strip_prefix("Bearer ") {
        Some(_) if asked.query("X-Goog-Signature").is_some() => return refuse(400, "InvalidArgument"),
        Some(token) => by_token(google, token)?,
        None if asked.query("X-Goog-Signature").is_some() => by_signature(asked)?,
        None => return refuse(401, "AuthenticationRequired"),
    };
    if google.barred.lock().unwrap().contains(&who) {
        let message = format!("{who} does not have storage.objects access to the Google Cloud Storage object.");
        return Err(Refusal(StatusCode::FORBIDDEN, "AccessDenied", message));
    }
    Ok(who)
}

pub(crate) fn by_token(google: &Google, token: &str) -> Result<String, Refusal> {
    if let Some((who, until)) = google.tokens.lock().unwrap().get(token) {
        return if *until > SystemTime::now() { Ok(who.clone()) } else { refuse(401, "AuthenticationRequired") };
    }
    // One that the account has signed itself.
    let wrong = || Refusal(StatusCode::UNAUTHORIZED, "AuthenticationRequired", "Invalid Credentials".to_owned());
    let (message, mac) = token.rsplit_once('.').ok_or_else(wrong)?;
    let (header, claims) = message.split_once('.').ok_or_else(wrong)?;
    let read = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    let (header, claims) = (read(header).ok_or_else(wrong)?, read(claims).ok_or_else(wrong)?);
    verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(mac).map_err(|_| wrong())?, &KEYS[..1]).map_err(|()| wrong())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let time = |name: &str| claims[name].as_u64().unwrap_or_default();
    let is_good = header["alg"] == "RS256"
        && header["kid"] == "0123"
        && claims["iss"] == ACCOUNT
        && claims["sub"] == ACCOUNT
        && claims["scope"] == SCOPE
        && time("iat") <= now
        && time("exp") > now
        && time("exp") - time("iat") <= 3600;
    if is_good { Ok(ACCOUNT.to_owned()) } else { Err(wrong()) }
}

fn verify(message: &[u8], mac: &[u8], keys: &[Arc<rsa::KeyPair>]) -> Result<(), ()> {
    let by = |key: &Arc<rsa::KeyPair>| {
        let key = signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref());
        key.verify(message, mac).is_ok()
    };
    if keys.iter().any(by) { Ok(()) } else { Err(()) }
}

/// Checks a signature as the pages on V4 say that it is made.
fn by_signature(asked: &Asked) -> Result<String, Refusal> {
    let value = |name: &str| asked.query(name).unwrap_or_default();
    let moment = value("X-Goog-Date");
    let Ok(from) = NaiveDateTime::parse_from_str(moment, "%Y%m%dT%H%M%SZ") else {
        return refuse(400, "MalformedSecurityHeader");
    };
    let scope = format!("{}/auto/storage/goog4_request", &moment[..8]);
    let credential = value("X-Goog-Credential").strip_suffix(&scope).and_then(|rest| rest.strip_suffix('/'));
    let seconds = value("X-Goog-Expires").parse::<i64>().unwrap_or_default();
    let is_whole = value("X-Goog-Algorithm") == "GOOG4-RSA-SHA256" && value("X-Goog-SignedHeaders") == "host";
    let (Some(who), true, 1..=604_800) = (credential, is_whole, seconds) else {
        return refuse(400, "MalformedSecurityHeader");
    };
    let query: Vec<String> = asked
        .query
        .iter()
        .filter(|(name, _)| *name != "X-Goog-Signature")
        .map(|(name, value)| format!("{}={}", escaped(name, b""), escaped(value, b"")))
        .collect();
    let path = escaped(&plain(asked.parts.uri.path()), b"/");
    let (method, query, host) = (&asked.parts.method, query.join("&"), asked.header("host"));
    let request = format!("{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    let hash = hex(digest(&SHA256, request.as_bytes()).as_ref());
    let text = format!("GOOG4-RSA-SHA256\n{moment}\n{scope}\n{hash}");
    let mac = value("X-Goog-Signature");
    let mac: Option<Vec<u8>> =
        (0..mac.len() / 2).map(|at| u8::from_str_radix(mac.get(at * 2..at * 2 + 2)?, 16).ok()).collect();
    if who != ACCOUNT || verify(text.as_bytes(), &mac.unwrap_or_default(), &KEYS[..]).is_err() {
        return refuse(403, "SignatureDoesNotMatch");
    }
    let now = Utc::now().timestamp();
    let from = from.and_utc().timestamp();
    if from > now {
        return refuse(403, "AccessDenied");
    }
    if now >= from + seconds {
        let message = "The provided token has expired.</Message><Details>Request signature expired</Details><Message>";
        return Err(Refusal(StatusCode::BAD_REQUEST, "ExpiredToken", message.to_owned()));
    }
    Ok(who.to_owned())
}

/// Those who give tokens and signatures.
pub(crate) async fn by_others(google: &Google, asked: &Asked, path: &str) -> Answer {
    if path == "/subject" {
        return match asked.header("x-pod") {
            "yes" => Ok(said(json!({"value": SUBJECT}))),
            _ => refuse(403, "AccessDenied"),
        };
    }
    if path == "/sts/v1/token" {
        return exchange(google, asked);
    }
    if let Some(what) = path.strip_prefix("/computeMetadata/v1/instance/service-accounts/default/") {
        return machine(google, asked, what);
    }
    let who = believed(google, asked)?;
    let Some((account, verb)) =
        path.strip_prefix("/v1/projects/-/serviceAccounts/").and_then(|rest| rest.split_once(':'))
    else {
        return refuse(404, "NotFound");
    };
    if account != ACCOUNT {
        let message = format!("Permission 'iam.serviceAccounts.{verb}' denied on resource (or it may not exist).");
        return Err(Refusal(StatusCode::FORBIDDEN, "PERMISSION_DENIED", message));
    }
    let body = asked.json()?;
    match verb {
        "generateAccessToken" if who.starts_with("principal://") && body["scope"][0] == SCOPE => {
            assert_eq!(body["lifetime"], "3600s");
            let (token, until) = google.give(ACCOUNT);
            let until = DateTime::<Utc>::from(until).to_rfc3339();
            Ok(said(json!({"accessToken": token, "expireTime": until})))
        }
        "signBlob" => {
            tokio::time::sleep(Duration::from_millis(google.iam_takes.load(Ordering::Relaxed))).await;
            let payload = STANDARD.decode(body["payload"].as_str().unwrap_or_default()).unwrap();
            let mut mac = vec![0; KEYS[1].public_modulus_len()];
            KEYS[1].sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), &payload, &mut mac).unwrap();
            Ok(said(json!({"keyId": "4567", "signedBlob": STANDARD.encode(mac)})))
        }
        _ => refuse(403, "PERMISSION_DENIED"),
    }
}

fn exchange(google: &Google, asked: &Asked) -> Answer {
    // In a form, and only there, a space may be written so.
    let form = pairs(&std::str::from_utf8(&asked.body).unwrap().replace('+', "%20"));
    let wanted = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", POOL),
        ("scope", SCOPE),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("subject_token", SUBJECT),
    ];
    if asked.parts.method != Method::POST
        || wanted.iter().any(|(name, value)| form.get(*name).map(String::as_str) != Some(*value))
    {
        let error = json!({"error": "invalid_grant", "error_description": "The given credential is rejected."});
        return Ok((StatusCode::BAD_REQUEST, said(error)).into_response());
    }
    let (token, _) = google.give("principal://pool/subject/pod");
    let kind = "urn:ietf:params:oauth:token-type:access_token";
    let given = json!({"access_token": token, "issued_token_type": kind, "token_type": "Bearer", "expires_in": 3600});
    Ok(said(given))
}

fn machine(google: &Google, asked: &Asked, what: &str) -> Answer {
    if asked.header("metadata-flavor") != "Google" {
        return refuse(403, "AccessDenied");
    }
    let has_none = google.has_no_account.load(Ordering::Relaxed);
    match what {
        "token" => {
            let (token, _) = google.give(if has_none { "principal://pool/subject/pod" } else { ACCOUNT });
            Ok(said(json!({"access_token": token, "expires_in": 3599, "token_type": "Bearer"})))
        }
        "email" => Ok(if has_none { "project.svc.id.goog" } else { ACCOUNT }.into_response()),
        _ => refuse(404, "NotFound"),
    }
}
