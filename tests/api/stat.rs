//! `/stat/…`; the sums of an imported installation are tested in `import`.

use insta::assert_snapshot;
use serde_json::json;

use crate::common::Server;

/// The sums with GPUs are tested in `tests/gpu`.
#[test]
fn usage_is_split_and_formatted_as_requested() {
    let server = Server::builder().without_docker().start().unwrap();
    let alice = server.member("alice");
    for query in ["", "?by=user", "?by=pod,gpu,day", "?by=hour&t=1d&user=alice", "?format=csv", "?format=json"] {
        alice.get(&format!("/stat/usage{query}")).ok();
    }
    assert_snapshot!(alice.get("/stat/usage?by=week"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "by: \"week\" is not one of user, pod, gpu, hour, day; separate several with commas"
    }
    "#);
    assert_snapshot!(alice.get("/stat/usage?format=xml"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "format: \"xml\" is not a format; use json or csv"
    }
    "#);
    assert_eq!(alice.get("/stat/usage?t=x").status, 400);
    assert_eq!(alice.get("/pod/series?ins=nothing&t=1h").status, 404);
    assert_eq!(alice.get("/host/series?t=-1").status, 400);
}

#[test]
fn windows_and_users_are_parsed() {
    let server = Server::builder().without_docker().start().unwrap();
    let alice = server.member("alice");
    for route in ["/stat/cputime", "/stat/gputime"] {
        assert_eq!(alice.get(route).ok().json(), json!({}));
        for span in ["1y", "1w", "1d", "1h", "1m", "1s", "3600", "0.5"] {
            alice.get(&format!("{route}?t={span}&user=alice,bob")).ok();
        }
        for bad in ["x", "1x", "-1", "", "inf", "nan", "1y1w", "1e400"] {
            assert_eq!(alice.get(&format!("{route}?t={bad}")).status, 400, "{route} {bad:?}");
        }
    }
    assert_snapshot!(alice.get("/stat/cputime?t=soon"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "t: \"soon\" is not a duration; write 1y, 1w, 1d, 1h, 1m, 1s or a number of seconds"
    }
    "#);
}
