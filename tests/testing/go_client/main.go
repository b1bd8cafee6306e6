// A client of etcd's own, for tests: carries out one command a line, and says on one line what became of it.
//
//	get KEY          ok VALUE, or ok for no such key
//	put KEY VALUE    ok REVISION
//	watch KEY        created, then PUT VALUE or DELETE for each event, until the next command; then closed
//	lease SECONDS    ok ID; kept alive from then on
//	kept             ok once the lease was kept alive again, lost when it is not any more
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const timeout = 20 * time.Second

func main() {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:          []string{os.Args[1]},
		DialTimeout:        timeout,
		BackoffWaitBetween: 5 * time.Millisecond,
		Logger:             zap.NewNop(),
	})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	defer client.Close()
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	var alive <-chan *clientv3.LeaseKeepAliveResponse
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		switch words[0] {
		case "get":
			answer, err := client.Get(ctx, words[1])
			if tell(err) {
				value := ""
				if len(answer.Kvs) > 0 {
					value = " " + string(answer.Kvs[0].Value)
				}
				fmt.Println("ok" + value)
			}
		case "put":
			answer, err := client.Put(ctx, words[1], words[2])
			if tell(err) {
				fmt.Println("ok", answer.Header.Revision)
			}
		case "watch":
			events := client.Watch(context.Background(), words[1], clientv3.WithCreatedNotify())
			go show(events)
		case "lease":
			seconds, _ := strconv.ParseInt(words[1], 10, 64)
			granted, err := client.Grant(ctx, seconds)
			if tell(err) {
				alive, _ = client.KeepAlive(context.Background(), granted.ID)
				fmt.Println("ok", granted.ID)
			}
		case "kept":
			if _, isOpen := <-alive; isOpen {
				fmt.Println("ok")
			} else {
				fmt.Println("lost")
			}
		}
		cancel()
	}
}

func tell(err error) bool {
	if err != nil {
		fmt.Println("error", err)
	}
	return err == nil
}

func show(events clientv3.WatchChan) {
	for answer := range events {
		if answer.Created {
			fmt.Println("created")
		}
		if err := answer.Err(); err != nil {
			fmt.Println("cancelled", err)
		}
		for _, event := range answer.Events {
			fmt.Println(event.Type, string(event.Kv.Value))
		}
	}
	fmt.Println("closed")
}
