use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const SHA256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn parse(method: &Method, target: &str) -> Result<Route, Unroutable> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    Route::parse(method, path, query, &HeaderMap::new())
}

fn get(target: &str) -> Route {
    parse(&Method::GET, target).unwrap_or_else(|error| panic!("{target}: {error:?}"))
}

/// The code of a refusal, or what `Allow` would say.
fn refused(method: Method, target: &str) -> (&'static str, u16) {
    match parse(&method, target) {
        Ok(route) => panic!("{method} {target}: {route:?}"),
        Err(Unroutable::Method(allow)) => (allow, 405),
        Err(Unroutable::Refused(error)) => error.code.wire(),
    }
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn sha256() -> Digest {
    SHA256.parse().unwrap()
}

fn sha512() -> Digest {
    Digest::of(Algorithm::Sha512, b"")
}

fn all() -> Page {
    Page { limit: MAX_PAGE, after: None }
}

#[test]
fn a_path_is_read_from_its_end() {
    let tag = |text: &str| Reference::Tag(text.parse().unwrap());
    let tags = |repository: &str| Route::Tags { repository: name(repository), page: all(), form: TagsForm::Plain };
    let by_tag = |repository: &str, text: &str| Route::ReadManifest {
        repository: name(repository),
        reference: tag(text),
        read: Read::Get,
    };
    let blob = |repository: &str| Route::ReadBlob { repository: name(repository), digest: sha256(), read: Read::Get };
    for (path, expected) in [
        ("/v2", Route::Ping),
        ("/v2/", Route::Ping),
        ("/v2/_catalog", Route::Catalog { page: all() }),
        ("/v2/a/tags/list", tags("a")),
        ("/v2/a/b/c/tags/list", tags("a/b/c")),
        ("/v2/tags/list/tags/list", tags("tags/list")),
        ("/v2/a/blobs/uploads/tags/list", tags("a/blobs/uploads")),
        ("/v2/a/manifests/tags/list", tags("a/manifests")),
        ("/v2/a/manifests/latest", by_tag("a", "latest")),
        ("/v2/a/manifests/manifests/manifests", by_tag("a/manifests", "manifests")),
        ("/v2/a/tags/manifests/list", by_tag("a/tags", "list")),
        ("/v2/a/blobs/uploads/manifests/1", by_tag("a/blobs/uploads", "1")),
        ("/v2/a/blobs/manifests/uploads", by_tag("a/blobs", "uploads")),
        (&format!("/v2/a/blobs/{SHA256}"), blob("a")),
        (&format!("/v2/a/blobs/blobs/{SHA256}"), blob("a/blobs")),
        (&format!("/v2/a/uploads/blobs/{SHA256}"), blob("a/uploads")),
        (&format!("/v2/a/blobs/{}", SHA256.replace(':', "%3A")), blob("a")),
        (&format!("/v2/a/blobs/{}", SHA256.replace(':', "%3a")), blob("a")),
        ("/v2/a/manifests/%6Catest", by_tag("a", "latest")),
    ] {
        assert_eq!(get(path), expected, "{path}");
    }
}

#[test]
fn every_operation_has_its_method() {
    let blob = format!("/v2/a/b/blobs/{SHA256}");
    let by_digest = format!("/v2/a/b/manifests/{SHA256}");
    let (uploads, upload) = ("/v2/a/b/blobs/uploads/", "/v2/a/b/blobs/uploads/01.x");
    for (method, target, expected, action) in [
        (Method::HEAD, "/v2/a/b/tags/list", "tags", Action::Pull),
        (Method::GET, "/v2/a/b/manifests/1", "manifest_read", Action::Pull),
        (Method::HEAD, "/v2/a/b/manifests/1", "manifest_read", Action::Pull),
        (Method::PUT, "/v2/a/b/manifests/1", "manifest_push", Action::Push),
        (Method::DELETE, "/v2/a/b/manifests/1", "manifest_delete", Action::Delete),
        (Method::DELETE, &by_digest, "manifest_delete", Action::Delete),
        (Method::GET, &blob, "blob_read", Action::Pull),
        (Method::HEAD, &blob, "blob_read", Action::Pull),
        (Method::DELETE, &blob, "blob_delete", Action::Delete),
        (Method::POST, uploads, "upload_start", Action::Push),
        (Method::POST, "/v2/a/b/blobs/uploads", "upload_start", Action::Push),
        (Method::GET, upload, "upload_status", Action::Push),
        (Method::PATCH, upload, "upload_append", Action::Push),
        (Method::PUT, &format!("{upload}?digest={SHA256}"), "upload_finish", Action::Push),
        (Method::DELETE, upload, "upload_cancel", Action::Push),
        (Method::GET, &format!("/v2/a/b/referrers/{SHA256}"), "referrers", Action::Pull),
    ] {
        let route = parse(&method, target).unwrap_or_else(|error| panic!("{method} {target}: {error:?}"));
        assert_eq!(route.name(), expected);
        assert_eq!(route.access(), Access::Repository(&name("a/b"), action), "{method} {target}");
    }
    assert_eq!(get("/v2/").access(), Access::Any);
    assert_eq!(get("/v2/_catalog").access(), Access::Catalog);
}

#[test]
fn another_method_is_told_which_ones_there_are() {
    for (target, allow) in [
        ("/v2/", "GET, HEAD"),
        ("/v2/_catalog", "GET, HEAD"),
        ("/v2/a/tags/list", "GET, HEAD"),
        ("/v2/a/manifests/1", "GET, HEAD, PUT, DELETE"),
        (&format!("/v2/a/blobs/{SHA256}"), "GET, HEAD, DELETE"),
        ("/v2/a/blobs/uploads/", "POST"),
        ("/v2/a/blobs/uploads/x", "GET, HEAD, PATCH, PUT, DELETE"),
        (&format!("/v2/a/referrers/{SHA256}"), "GET, HEAD"),
    ] {
        assert_eq!(refused(Method::TRACE, target), (allow, 405), "{target}");
    }
    assert_eq!(refused(Method::GET, "/v2/a/blobs/uploads/"), ("POST", 405));
}

#[test]
fn what_is_malformed_is_refused_by_name() {
    let long = format!("/v2/{}/manifests/1", "a".repeat(300));
    for (target, code) in [
        ("/v2//tags/list", "NAME_INVALID"),
        ("/v2/tags/list", "NAME_INVALID"),
        ("/v2/a//b/tags/list", "NAME_INVALID"),
        ("/v2/a//tags/list", "NAME_INVALID"),
        ("/v2//a/manifests/1", "NAME_INVALID"),
        ("/v2/A/manifests/1", "NAME_INVALID"),
        ("/v2/a%2Fb/manifests/1", "NAME_INVALID"),
        ("/v2/a/%2e%2e/b/manifests/1", "NAME_INVALID"),
        ("/v2/a/../b/manifests/1", "NAME_INVALID"),
        ("/v2/%61/manifests/1", "NAME_INVALID"),
        ("/v2/_/manifests/1", "NAME_INVALID"),
        (&long, "NAME_INVALID"),
        ("/v2/a/blobs/sha256:abc", "DIGEST_INVALID"),
        ("/v2/a/blobs/", "DIGEST_INVALID"),
        ("/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", "DIGEST_INVALID"),
        ("/v2/a/referrers/latest", "DIGEST_INVALID"),
        ("/v2/a/tags/list?n=-1", "PAGINATION_NUMBER_INVALID"),
        ("/v2/a/tags/list?n=abc", "PAGINATION_NUMBER_INVALID"),
        ("/v2/_catalog?n=1.5", "PAGINATION_NUMBER_INVALID"),
        ("/v2/_catalog?n=%2B1", "PAGINATION_NUMBER_INVALID"),
    ] {
        assert_eq!(refused(Method::GET, target), (code, 400), "{target}");
    }
}

#[test]
fn what_is_no_page_is_not_found() {
    for target in [
        "/",
        "/v1/",
        "/v2a",
        "/v2/a",
        "/v2/a/",
        "/v2//",
        "/v2/_catalog/",
        "/v2/a/tags/list/",
        "/v2/a/tags/lists",
        "/v2/a/manifests",
        "/v2/a/manifests/1/",
        "/v2/a/blobs/uploads/x/",
        "/v2/a/blobs/uploads//",
        "/v2/a/tags%2Flist",
        "v2/",
        "",
        "/V2/",
        "//v2/",
        "/v2/a/uploads/x",
    ] {
        assert_eq!(refused(Method::GET, target), ("NAME_UNKNOWN", 404), "{target}");
    }
}

#[test]
fn a_reference_that_is_none_is_unknown_to_who_reads_and_invalid_to_who_writes() {
    for reference in [".INVALID_MANIFEST_NAME", "-a", "sha256:totallywrong", "a%2Fb", "a%20b", "", &"t".repeat(129)] {
        let target = format!("/v2/a/manifests/{reference}");
        assert_eq!(refused(Method::GET, &target), ("MANIFEST_UNKNOWN", 404), "{target}");
        assert_eq!(refused(Method::HEAD, &target), ("MANIFEST_UNKNOWN", 404), "{target}");
        let code = if reference.contains(':') { "DIGEST_INVALID" } else { "TAG_INVALID" };
        assert_eq!(refused(Method::PUT, &target), (code, 400), "{target}");
        assert_eq!(refused(Method::DELETE, &target), (code, 400), "{target}");
    }
}

#[test]
fn a_push_may_name_more_tags() {
    let tags = |target: &str| match parse(&Method::PUT, target).unwrap() {
        Route::PushManifest { tags, .. } => tags.iter().map(|tag| tag.to_string()).collect::<Vec<_>>(),
        route => panic!("{route:?}"),
    };
    assert_eq!(tags(&format!("/v2/a/manifests/{SHA256}")), Vec::<String>::new());
    assert_eq!(tags(&format!("/v2/a/manifests/{SHA256}?tag=1.2&ns=x&tag=1&tag=1.2")), ["1.2", "1"]);
    assert_eq!(tags("/v2/a/manifests/latest?tag=1&tag=latest"), ["latest", "1"]);
    let many = |count: usize| {
        let tags: Vec<_> = (0..count).map(|number| format!("tag=t{number}")).collect();
        format!("/v2/a/manifests/{SHA256}?{}", tags.join("&"))
    };
    assert_eq!(tags(&many(MAX_TAGS)).len(), MAX_TAGS);
    assert_eq!(refused(Method::PUT, &many(MAX_TAGS + 1)).1, 414);
    assert_eq!(refused(Method::PUT, &format!("/v2/a/manifests/{SHA256}?tag=.x")), ("TAG_INVALID", 400));
}

#[test]
fn an_upload_starts_in_three_ways() {
    let start = |query: &str| match parse(&Method::POST, &format!("/v2/a/blobs/uploads/{query}")).unwrap() {
        Route::StartUpload { start, .. } => start,
        route => panic!("{route:?}"),
    };
    assert_eq!(start(""), Start::Session(Algorithm::Sha256));
    assert_eq!(start("?digest="), Start::Session(Algorithm::Sha256));
    assert_eq!(start("?digest-algorithm=sha512"), Start::Session(Algorithm::Sha512));
    assert_eq!(start(&format!("?digest={}", sha512())), Start::Whole(sha512()));
    let mount = |from: Option<&str>| Start::Mount { digest: sha256(), from: from.map(name) };
    assert_eq!(start(&format!("?mount={SHA256}&from=b/c")), mount(Some("b/c")));
    assert_eq!(start(&format!("?from=b%2Fc&mount={SHA256}")), mount(Some("b/c")));
    assert_eq!(start(&format!("?mount={SHA256}")), mount(None));
    assert_eq!(start(&format!("?mount={SHA256}&from=B")), mount(None));
    for query in ["?mount=x&from=b", "?digest=sha256:0", "?digest-algorithm=md5"] {
        assert_eq!(refused(Method::POST, &format!("/v2/a/blobs/uploads/{query}")), ("DIGEST_INVALID", 400), "{query}");
    }
}

#[test]
fn the_end_of_an_upload_names_its_digest() {
    let url = "/v2/a/blobs/uploads/01ABC.xyz?_state=p-_1&digest-algorithm=sha512";
    let upload =
        UploadUrl { id: "01ABC.xyz".to_owned(), proof: Some(Proof::sent("p-_1")), algorithm: Algorithm::Sha512 };
    let expected = Route::Finish { repository: name("a"), upload: upload.clone(), digest: sha512() };
    assert_eq!(parse(&Method::PUT, &format!("{url}&digest={}", sha512())).unwrap(), expected);
    let appended = parse(&Method::PATCH, url).unwrap();
    assert_eq!(appended, Route::Append { repository: name("a"), upload });
    assert_eq!(refused(Method::PUT, url), ("DIGEST_INVALID", 400));
    assert_eq!(refused(Method::PUT, &format!("{url}&digest=sha256:0")), ("DIGEST_INVALID", 400));
}

#[test]
fn however_large_a_page_is_it_is_bounded() {
    let page = |query: &str| match get(&format!("/v2/a/tags/list{query}")) {
        Route::Tags { page, .. } => (page.limit, page.after),
        route => panic!("{route:?}"),
    };
    assert_eq!(page(""), (MAX_PAGE, None));
    assert_eq!(page("?n=0"), (0, None));
    assert_eq!(page("?n=&last="), (MAX_PAGE, None));
    assert_eq!(page("?n=10&last=1.0"), (10, Some("1.0".to_owned())));
    for huge in ["1001", "2147483648", "18446744073709551616", &"9".repeat(500)] {
        assert_eq!(page(&format!("?n={huge}")), (MAX_PAGE, None));
    }
}

#[test]
fn gcr_asks_for_its_own_form() {
    let form = |target: &str, agent: &'static str| {
        let headers = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(agent))]);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match Route::parse(&Method::GET, path, Some(query), &headers).unwrap() {
            Route::Tags { form, .. } => form,
            route => panic!("{route:?}"),
        }
    };
    assert_eq!(form("/v2/a/tags/list", "gcrane/0.20"), TagsForm::Gcr);
    assert_eq!(form("/v2/a/tags/list?gcr=true", "curl"), TagsForm::Gcr);
    assert_eq!(form("/v2/a/tags/list", "crane/0.20"), TagsForm::Plain);
}

#[test]
fn an_artifact_type_keeps_its_plus() {
    let of = |query: &str| match get(&format!("/v2/a/referrers/{SHA256}{query}")) {
        Route::Referrers { artifact_type, .. } => artifact_type,
        route => panic!("{route:?}"),
    };
    assert_eq!(of(""), None);
    assert_eq!(of("?artifactType=").as_deref(), Some(""));
    assert_eq!(of("?artifactType=a/b+json").as_deref(), Some("a/b+json"));
    assert_eq!(of("?artifactType=a%2Fb%2Bjson").as_deref(), Some("a/b+json"));
}

fn any_path() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "",
        "a",
        "b-c",
        "A",
        "..",
        "%2e%2e",
        "%2F",
        "a%2Fb",
        "%",
        "%zz",
        "%00",
        "blobs",
        "uploads",
        "manifests",
        "tags",
        "list",
        "referrers",
        "_catalog",
        "latest",
        "01.x",
        SHA256,
        "sha256%3Aabc",
        "é",
    ]);
    prop_oneof![prop::collection::vec(piece, 0..8).prop_map(|pieces| format!("/v2/{}", pieces.join("/"))), "\\PC*",]
}

proptest! {
    #[test]
    fn nothing_panics_and_a_repository_stands_in_its_path(
        path in any_path(),
        query in prop::option::of("\\PC*"),
        method in prop::sample::select(vec![
            Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::OPTIONS,
        ]),
    ) {
        if let Ok(route) = Route::parse(&method, &path, query.as_deref(), &HeaderMap::new()) {
            let is_there = route.repository().is_none_or(|name| path.starts_with(&format!("/v2/{name}/")));
            prop_assert!(is_there, "{} {:?}", path, route);
        }
    }
}
