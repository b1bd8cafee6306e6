package orders

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var endpoint string

// start runs an etcd on a port of its own choosing until stop is called.
func start() (stop func(), err error) {
	etcd := exec.Command("mvccstore-etcd", "--memory",
		"--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:0")
	log, err := etcd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := etcd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var line struct{ Msg, Address string }
		_ = json.Unmarshal(lines.Bytes(), &line)
		if line.Address != "" {
			endpoint = "http://" + line.Address
		}
		if line.Msg == "ready to serve client requests" {
			go io.Copy(io.Discard, log)
			break
		}
	}
	return func() {
		_ = etcd.Process.Signal(os.Interrupt)
		_ = etcd.Wait()
	}, nil
}

func TestMain(m *testing.M) {
	stop, err := start()
	if err != nil {
		panic(err)
	}
	code := m.Run()
	stop()
	os.Exit(code)
}

func TestAnOrderIsFound(t *testing.T) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	key := t.Name() + "/alice" // one server for all tests, and keys of its own for each
	seen := client.Watch(ctx, key)
	if _, err := client.Put(ctx, key, "tea"); err != nil {
		t.Fatal(err)
	}
	found, err := client.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Kvs) != 1 || string(found.Kvs[0].Value) != "tea" {
		t.Fatalf("found %v", found.Kvs)
	}
	if event := (<-seen).Events[0]; string(event.Kv.Value) != "tea" {
		t.Fatalf("saw %v", event)
	}
}
