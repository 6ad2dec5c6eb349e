//! Which addresses of resources spans have: those of the catalogue.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_listed_is_told_and_no_other() {
    let rig = Rig::legacy(&["t"]).await;
    rig.offer_resource();
    let collector = Collector::start().await;
    let app = app(&rig, &collector, "").await;
    let client = Legacy::connect(app.http()).await;
    eventually(SOON, "the resource is listed", || async {
        let listed = client.request("resources/list", "{}").await.json();
        (listed["result"]["resources"][0]["uri"] == "rig:one").then_some(())
    })
    .await;
    // The other is its only server's to know, and may be made of anything.
    for (n, uri, shown) in [(1, "rig:one", some("rig:one")), (2, "rig:hunter2", None)] {
        let trace = format!("{n}bf92f3577b34da6a3ce929d0e0e4736");
        let fields = meta(&parent(&trace, "01"), "", "");
        let params = format!(r#"{{"uri":"{uri}","_meta":{{"own":1{fields}}}}}"#);
        client.request("resources/read", &params).await.expect(200);
        for got in collector.trace(&trace, 2).await {
            assert_eq!(got.span.name, "resources/read");
            assert_eq!(got.get("mcp.resource.uri"), shown, "{got:?}");
            assert!(!format!("{:?}", got.span).contains("hunter2"), "{got:?}");
        }
    }
    app.stop().await;
}
