// A client that calls the store of each record without a router in between, by xDS. It reads sandboxes and prints the
// name in each answer.
//
//	GRPC_XDS_BOOTSTRAP=bootstrap.json direct xds:///sandbox.v1.SandboxService NAME...
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"golang.org/x/crypto/blake2b"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	_ "google.golang.org/grpc/xds"

	sandboxv1 "example.com/you/client/gen/sandbox/v1"
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: direct TARGET NAME...")
	}
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := sandboxv1.NewSandboxServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "sandbox-schema-version", "2", "baton-client", "go-direct")
	for _, name := range os.Args[2:] {
		got, err := client.GetSandbox(withBucket(ctx, name), &sandboxv1.GetSandboxRequest{Name: name})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(got.GetName())
	}
}

// withBucket adds the bucket of the record, by which the routes choose the store.
func withBucket(ctx context.Context, name string) context.Context {
	hash, err := blake2b.New(8, nil)
	if err != nil {
		panic(err) // The size is valid.
	}
	hash.Write([]byte(name))
	bucket := binary.BigEndian.Uint64(hash.Sum(nil)) % 1024
	return metadata.AppendToOutgoingContext(ctx, "baton-bucket", strconv.FormatUint(bucket, 10))
}
